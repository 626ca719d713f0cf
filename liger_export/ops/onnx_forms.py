"""The ONNX form of each operator: a schema for the traced node, and a body for each lowering.

The traced graph holds one ``liger::GLAAttention`` node a layer. A lowering gives that node a meaning by adding
a model-local function of the same name, whose body uses operators that the engine has.
"""

from onnx import FunctionProto, parser
from onnx.defs import OpSchema

__all__ = ["DOMAIN", "OPSET", "SCHEMAS", "STOCK_FUNCTIONS", "stock_function"]

DOMAIN = "liger"
OPSET = 1

GLA_INPUTS = ["query", "key", "value", "cos", "sin", "position_ids", "recurrent_state", "window_key", "window_value"]
GLA_OUTPUTS = ["output", "next_recurrent_state", "next_window_key", "next_window_value"]
GLA_ATTRIBUTES = {
    "num_heads": OpSchema.AttrType.INT,
    "num_key_value_heads": OpSchema.AttrType.INT,
    "head_dim": OpSchema.AttrType.INT,
    "window_size": OpSchema.AttrType.INT,
    "gate_normalizer": OpSchema.AttrType.FLOAT,
}


def _schema(name: str, inputs: list[str], outputs: list[str], attributes: dict[str, OpSchema.AttrType]) -> OpSchema:
    types = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int64)"]

    def parameters(names: list[str]) -> list[OpSchema.FormalParameter]:
        return [OpSchema.FormalParameter(each, f"T_{each}") for each in names]

    return OpSchema(
        name,
        DOMAIN,
        OPSET,
        inputs=parameters(inputs),
        outputs=parameters(outputs),
        type_constraints=[(f"T_{each}", types, each) for each in (*inputs, *outputs)],
        attributes=[OpSchema.Attribute(each, kind) for each, kind in attributes.items()],
    )


SCHEMAS = {
    "GLAAttention": _schema("GLAAttention", GLA_INPUTS, GLA_OUTPUTS, GLA_ATTRIBUTES),
    "LastPositions": _schema("LastPositions", ["hidden_states", "count"], ["kept"], {}),
}

# Where the gate is log sigmoid(x) / n = softplus(-x) * (-1 / n). Shapes are computed from attributes and from
# input_ids alone, so ONNX Runtime folds or shares them across layers.
STOCK_FUNCTIONS = {
    "GLAAttention": """
<domain: "liger", opset_import: ["" : 23, "com.microsoft" : 1]>
GLAAttention <num_heads, num_key_value_heads, head_dim, window_size, gate_normalizer>
    (query, key, value, cos, sin, position_ids, recurrent_state, window_key, window_value)
    => (output, next_recurrent_state, next_window_key, next_window_value)
{
    one = Constant <value = int64[1] {1}> ()
    keep_batch_and_length = Constant <value = int64[3] {0, 0, -1}> ()
    head_dim = Constant <value_int: int = @head_dim> ()
    head_size = Reshape (head_dim, one)
    heads = Concat <axis = 0> (keep_batch_and_length, head_size)

    query_heads = Reshape (query, heads)
    query_softmax = Softmax <axis = -1> (query_heads)
    query_features = Reshape (query_softmax, keep_batch_and_length)
    key_heads = Reshape (key, heads)
    key_softmax = Softmax <axis = -1> (key_heads)
    key_features = Reshape (key_softmax, keep_batch_and_length)

    normalizer = Constant <value_float: float = @gate_normalizer> ()
    negative_normalizer = Neg (normalizer)
    typed_normalizer = CastLike (negative_normalizer, key)
    negative_key = Neg (key)
    softplus = Softplus (negative_key)
    gate = Div (softplus, typed_normalizer)

    recurrent, next_recurrent_state = com.microsoft.LinearAttention
        <update_rule = "gated", scale = 1.0, q_num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads>
        (query_features, key_features, value, recurrent_state, gate)

    rotated_query = RotaryEmbedding <num_heads: int = @num_heads> (query, cos, sin)
    rotated_key = RotaryEmbedding <num_heads: int = @num_key_value_heads> (key, cos, sin)
    last = Constant <value = int64 {-1}> ()
    last_position_wide = Gather <axis = 1> (position_ids, last)
    last_position = Cast <to = 6> (last_position_wide)
    furthest_position = ReduceMax <keepdims = 0> (last_position)
    one_more = Constant <value = int32 {1}> ()
    total_length = Add (furthest_position, one_more)
    window, next_window_key, next_window_value = com.microsoft.GroupQueryAttention
        <num_heads: int = @num_heads, kv_num_heads: int = @num_key_value_heads,
         local_window_size: int = @window_size, sliding_window_cache = 1, do_rotary = 0>
        (rotated_query, rotated_key, value, window_key, window_value, last_position, total_length)

    sum = Add (recurrent, window)
    half = Constant <value = float {0.5}> ()
    typed_half = CastLike (half, sum)
    output = Mul (sum, typed_half)
}
""",
    "LastPositions": """
<domain: "liger", opset_import: ["" : 23]>
LastPositions (hidden_states, count) => (kept)
{
    one = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    negative = Neg (count)
    start = Reshape (negative, one)
    kept = Slice (hidden_states, start, end, one)
}
""",
}


def stock_function(name: str) -> FunctionProto:
    """Body of an operator in terms that an unmodified ONNX Runtime ships (ai.onnx and com.microsoft)."""
    return parser.parse_function(STOCK_FUNCTIONS[name])
