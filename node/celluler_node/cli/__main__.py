"""`python -m celluler_node.cli`: how a node is started in the background."""

from celluler_node.cli import main

if __name__ == "__main__":
    main()
