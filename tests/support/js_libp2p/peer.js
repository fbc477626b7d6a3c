// A js-libp2p peer: dials the address given, identifies and pings whoever is there, sends bytes over a stream of the
// protocol given and reads them back. What it learnt is one line of JSON on stdout.
import { createHash, randomBytes } from 'node:crypto'

Promise.withResolvers ??= function () { // js-libp2p asks for Node 22, where it is built in
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const [address, protocol, size] = process.argv.slice(2)
const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { multiaddr } = await import('@multiformats/multiaddr')

const node = await createLibp2p({
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})
await node.start()

const identified = new Promise(resolve => node.addEventListener('peer:identify', event => resolve(event.detail)))
const connection = await node.dial(multiaddr(address))
const about = await identified
const rtt = await node.services.ping.ping(connection.remotePeer)

const sent = randomBytes(Number(size))
const stream = await connection.newStream(protocol)
const sending = (async () => {
  for (let at = 0; at < sent.length; at += 16384) {
    if (!stream.send(sent.subarray(at, at + 16384))) await stream.onDrain()
  }
  await stream.close()
})()
const hash = createHash('sha256')
let received = 0
for await (const chunk of stream) {
  const bytes = chunk.subarray()
  hash.update(bytes)
  received += bytes.length
}
await sending

console.log(JSON.stringify({
  peer: about.peerId.toString(),
  protocols: about.protocols,
  pinged: rtt >= 0,
  muxer: connection.multiplexer,
  encryption: connection.encryption,
  received,
  intact: hash.digest('hex') === createHash('sha256').update(sent).digest('hex')
}))
await node.stop()
