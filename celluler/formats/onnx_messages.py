"""Which fields of ONNX's messages hold messages that can grow, for the walk that counts them. Source: onnx/onnx.proto.

Left out are those that hold numbers and single texts alone (dimensions, entries of two texts): where they stand they
are counted already.
"""

from __future__ import annotations

from celluler.formats.protobuf_walk import Message

_GRAPH_FIELDS: dict[int, Message] = {}
_TYPE_FIELDS: dict[int, Message] = {}
# Both hold themselves, by way of others; so they are filled below.
_GRAPH, _TYPE = Message("GraphProto", _GRAPH_FIELDS), Message("TypeProto", _TYPE_FIELDS)

_TENSOR = Message("TensorProto")
_SPARSE = Message("SparseTensorProto", {1: _TENSOR, 2: _TENSOR})
_SHAPE = Message("TensorShapeProto")
_SHAPED = Message("TypeProto.Tensor", {2: _SHAPE})
_WRAPPED = Message("TypeProto.Sequence", {1: _TYPE})
_TYPE_FIELDS.update({1: _SHAPED, 4: _WRAPPED, 5: Message("TypeProto.Map", {2: _TYPE}), 8: _SHAPED, 9: _WRAPPED})
_VALUE = Message("ValueInfoProto", {2: _TYPE})
_ATTRIBUTE = Message(
    "AttributeProto",
    {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 14: _TYPE, 15: _TYPE, 22: _SPARSE, 23: _SPARSE},
)
_SHARDING = Message("ShardingSpecProto", {4: Message("ShardedDimProto")})
_NODE = Message("NodeProto", {5: _ATTRIBUTE, 10: Message("NodeDeviceConfigurationProto", {2: _SHARDING})})
_GRAPH_FIELDS.update(
    {1: _NODE, 5: _TENSOR, 11: _VALUE, 12: _VALUE, 13: _VALUE, 14: Message("TensorAnnotation"), 15: _SPARSE}
)
MODEL = Message(
    "ModelProto",
    {
        7: _GRAPH,
        20: Message("TrainingInfoProto", {1: _GRAPH, 2: _GRAPH}),
        25: Message("FunctionProto", {7: _NODE, 11: _ATTRIBUTE, 12: _VALUE}),
        26: Message("DeviceConfigurationProto"),
    },
    allowed=frozenset((1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26)),
    required=frozenset((1, 7, 8)),
)
"""Of a whole file."""
