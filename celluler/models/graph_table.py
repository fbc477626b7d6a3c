"""The operations that a graph may hold, as ATen declares them: every argument that a document may give, and no other.

What says where and how a tensor lies (device, layout, memory format, generator) is the interpreter's affair and left
out. Absent on purpose, for good: `from_file`, `empty*`, `as_strided`, `set_`, `resize_`, whatever looks at values to
decide on a shape (`nonzero`, `masked_select`, `unique`), and whatever writes into its argument but three that write
into buffers. A test holds every line against the torch that is installed. Knows no torch.
"""

from __future__ import annotations

SIGNATURES: dict[str, str] = {
    "Layers": """
linear.default(Tensor input, Tensor weight, Tensor? bias=null) -> Tensor
conv1d.default(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1], int[] padding=[0], int[]
    dilation=[1], int groups=1) -> Tensor
conv2d.default(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1,1], int[] padding=[0,0], int[]
    dilation=[1,1], int groups=1) -> Tensor
conv3d.default(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1,1,1], int[] padding=[0,0,0],
    int[] dilation=[1,1,1], int groups=1) -> Tensor
conv2d.padding(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1,1], str padding="valid", int[]
    dilation=[1,1], int groups=1) -> Tensor
conv1d.padding(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1], str padding="valid", int[]
    dilation=[1], int groups=1) -> Tensor
conv_transpose1d.default(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1], int[] padding=[0],
    int[] output_padding=[0], int groups=1, int[] dilation=[1]) -> Tensor
conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1,1], int[] padding=[0,0],
    int[] output_padding=[0,0], int groups=1, int[] dilation=[1,1]) -> Tensor
conv_transpose3d.input(Tensor input, Tensor weight, Tensor? bias=null, int[] stride=[1,1,1], int[]
    padding=[0,0,0], int[] output_padding=[0,0,0], int groups=1, int[] dilation=[1,1,1]) -> Tensor
embedding.default(Tensor weight, Tensor indices, int padding_idx=-1, bool scale_grad_by_freq=false, bool
    sparse=false) -> Tensor
batch_norm.default(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool
    training, float momentum, float eps, bool cudnn_enabled) -> Tensor
instance_norm.default(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,
    bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor
layer_norm.default(Tensor input, int[] normalized_shape, Tensor? weight=null, Tensor? bias=null, float
    eps=1e-05, bool cudnn_enable=true) -> Tensor
group_norm.default(Tensor input, int num_groups, Tensor? weight=null, Tensor? bias=null, float eps=1e-05, bool
    cudnn_enabled=true) -> Tensor
rms_norm.default(Tensor input, int[] normalized_shape, Tensor? weight=null, float? eps=null) -> Tensor
lstm.input(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool
    train, bool bidirectional, bool batch_first) -> Tensor[]
gru.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train,
    bool bidirectional, bool batch_first) -> Tensor[]
rnn_tanh.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool
    train, bool bidirectional, bool batch_first) -> Tensor[]
rnn_relu.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool
    train, bool bidirectional, bool batch_first) -> Tensor[]
scaled_dot_product_attention.default(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=null, float
    dropout_p=0.0, bool is_causal=false, float? scale=null, bool enable_gqa=false) -> Tensor
dropout.default(Tensor input, float p, bool train) -> Tensor
feature_dropout.default(Tensor input, float p, bool train) -> Tensor
alpha_dropout.default(Tensor input, float p, bool train) -> Tensor
""",
    "Activations": """
relu.default(Tensor self) -> Tensor
relu6.default(Tensor self) -> Tensor
leaky_relu.default(Tensor self, Scalar negative_slope=0.01) -> Tensor
elu.default(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor
celu.default(Tensor self, Scalar alpha=1.0) -> Tensor
selu.default(Tensor self) -> Tensor
gelu.default(Tensor self, str approximate="none") -> Tensor
silu.default(Tensor self) -> Tensor
mish.default(Tensor self) -> Tensor
softplus.default(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor
sigmoid.default(Tensor self) -> Tensor
log_sigmoid.default(Tensor self) -> Tensor
tanh.default(Tensor self) -> Tensor
hardtanh.default(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor
hardswish.default(Tensor self) -> Tensor
hardsigmoid.default(Tensor self) -> Tensor
prelu.default(Tensor self, Tensor weight) -> Tensor
glu.default(Tensor self, int dim=-1) -> Tensor
threshold.default(Tensor self, Scalar threshold, Scalar value) -> Tensor
softmax.int(Tensor self, int dim, dtype? dtype=null) -> Tensor
log_softmax.int(Tensor self, int dim, dtype? dtype=null) -> Tensor
""",
    "Pooling and resizing": """
max_pool1d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0], int[] dilation=[1], bool
    ceil_mode=false) -> Tensor
max_pool2d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0,0], int[] dilation=[1,1],
    bool ceil_mode=false) -> Tensor
max_pool3d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0,0,0], int[]
    dilation=[1,1,1], bool ceil_mode=false) -> Tensor
avg_pool1d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0], bool ceil_mode=false,
    bool count_include_pad=true) -> Tensor
avg_pool2d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0,0], bool ceil_mode=false,
    bool count_include_pad=true, int? divisor_override=null) -> Tensor
avg_pool3d.default(Tensor self, int[] kernel_size, int[] stride=[], int[] padding=[0,0,0], bool ceil_mode=false,
    bool count_include_pad=true, int? divisor_override=null) -> Tensor
adaptive_avg_pool1d.default(Tensor self, int[] output_size) -> Tensor
adaptive_avg_pool2d.default(Tensor self, int[] output_size) -> Tensor
adaptive_max_pool2d.default(Tensor self, int[] output_size) -> Tensor[]
upsample_nearest1d.vec(Tensor input, int[]? output_size, float[]? scale_factors) -> Tensor
upsample_nearest2d.vec(Tensor input, int[]? output_size, float[]? scale_factors) -> Tensor
upsample_bilinear2d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
upsample_bicubic2d.vec(Tensor input, int[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
pixel_shuffle.default(Tensor self, int upscale_factor) -> Tensor
pixel_unshuffle.default(Tensor self, int downscale_factor) -> Tensor
pad.default(Tensor self, int[] pad, str mode="constant", float? value=null) -> Tensor
""",
    "Arithmetic": """
add.Tensor(Tensor self, Tensor other, Scalar alpha=1) -> Tensor
add.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
sub.Tensor(Tensor self, Tensor other, Scalar alpha=1) -> Tensor
sub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
mul.Tensor(Tensor self, Tensor other) -> Tensor
mul.Scalar(Tensor self, Scalar other) -> Tensor
div.Tensor(Tensor self, Tensor other) -> Tensor
div.Scalar(Tensor self, Scalar other) -> Tensor
div.Tensor_mode(Tensor self, Tensor other, str? rounding_mode) -> Tensor
pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor
pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor
pow.Scalar(Scalar self, Tensor exponent) -> Tensor
neg.default(Tensor self) -> Tensor
abs.default(Tensor self) -> Tensor
sign.default(Tensor self) -> Tensor
exp.default(Tensor self) -> Tensor
expm1.default(Tensor self) -> Tensor
log.default(Tensor self) -> Tensor
log1p.default(Tensor self) -> Tensor
sqrt.default(Tensor self) -> Tensor
rsqrt.default(Tensor self) -> Tensor
reciprocal.default(Tensor self) -> Tensor
square.default(Tensor self) -> Tensor
sin.default(Tensor self) -> Tensor
cos.default(Tensor self) -> Tensor
erf.default(Tensor self) -> Tensor
floor.default(Tensor self) -> Tensor
ceil.default(Tensor self) -> Tensor
round.default(Tensor self) -> Tensor
clamp.default(Tensor self, Scalar? min=null, Scalar? max=null) -> Tensor
clamp_min.default(Tensor self, Scalar min) -> Tensor
clamp_max.default(Tensor self, Scalar max) -> Tensor
minimum.default(Tensor self, Tensor other) -> Tensor
maximum.default(Tensor self, Tensor other) -> Tensor
""",
    "Products of matrices": """
matmul.default(Tensor self, Tensor other) -> Tensor
mm.default(Tensor self, Tensor mat2) -> Tensor
bmm.default(Tensor self, Tensor mat2) -> Tensor
addmm.default(Tensor self, Tensor mat1, Tensor mat2, Scalar beta=1, Scalar alpha=1) -> Tensor
baddbmm.default(Tensor self, Tensor batch1, Tensor batch2, Scalar beta=1, Scalar alpha=1) -> Tensor
outer.default(Tensor self, Tensor vec2) -> Tensor
einsum.default(str equation, Tensor[] tensors, int[]? path=null) -> Tensor
""",
    "Reductions": """
mean.default(Tensor self, dtype? dtype=null) -> Tensor
mean.dim(Tensor self, int[]? dim, bool keepdim=false, dtype? dtype=null) -> Tensor
sum.default(Tensor self, dtype? dtype=null) -> Tensor
sum.dim_IntList(Tensor self, int[]? dim, bool keepdim=false, dtype? dtype=null) -> Tensor
var.correction(Tensor self, int[]? dim=null, Scalar? correction=null, bool keepdim=false) -> Tensor
std.correction(Tensor self, int[]? dim=null, Scalar? correction=null, bool keepdim=false) -> Tensor
amax.default(Tensor self, int[] dim=[], bool keepdim=false) -> Tensor
amin.default(Tensor self, int[] dim=[], bool keepdim=false) -> Tensor
max.dim(Tensor self, int dim, bool keepdim=false) -> Tensor[]
min.dim(Tensor self, int dim, bool keepdim=false) -> Tensor[]
argmax.default(Tensor self, int? dim=null, bool keepdim=false) -> Tensor
logsumexp.default(Tensor self, int[] dim, bool keepdim=false) -> Tensor
cumsum.default(Tensor self, int dim, dtype? dtype=null) -> Tensor
diff.default(Tensor self, int n=1, int dim=-1, Tensor? prepend=null, Tensor? append=null) -> Tensor
linalg_vector_norm.default(Tensor self, Scalar ord=2, int[]? dim=null, bool keepdim=false, dtype? dtype=null) ->
    Tensor
topk.default(Tensor self, int k, int dim=-1, bool largest=true, bool sorted=true) -> Tensor[]
""",
    "Comparisons": """
eq.Tensor(Tensor self, Tensor other) -> Tensor
eq.Scalar(Tensor self, Scalar other) -> Tensor
ne.Tensor(Tensor self, Tensor other) -> Tensor
ne.Scalar(Tensor self, Scalar other) -> Tensor
lt.Tensor(Tensor self, Tensor other) -> Tensor
lt.Scalar(Tensor self, Scalar other) -> Tensor
le.Tensor(Tensor self, Tensor other) -> Tensor
le.Scalar(Tensor self, Scalar other) -> Tensor
gt.Tensor(Tensor self, Tensor other) -> Tensor
gt.Scalar(Tensor self, Scalar other) -> Tensor
ge.Tensor(Tensor self, Tensor other) -> Tensor
ge.Scalar(Tensor self, Scalar other) -> Tensor
logical_not.default(Tensor self) -> Tensor
logical_and.default(Tensor self, Tensor other) -> Tensor
logical_or.default(Tensor self, Tensor other) -> Tensor
bitwise_not.default(Tensor self) -> Tensor
bitwise_and.Tensor(Tensor self, Tensor other) -> Tensor
bitwise_or.Tensor(Tensor self, Tensor other) -> Tensor
""",
    "Shapes": """
view.default(Tensor self, int[] size) -> Tensor
reshape.default(Tensor self, int[] shape) -> Tensor
flatten.using_ints(Tensor self, int start_dim=0, int end_dim=-1) -> Tensor
unflatten.int(Tensor self, int dim, int[] sizes) -> Tensor
permute.default(Tensor self, int[] dims) -> Tensor
transpose.int(Tensor self, int dim0, int dim1) -> Tensor
t.default(Tensor self) -> Tensor
numpy_T.default(Tensor self) -> Tensor
movedim.intlist(Tensor self, int[] source, int[] destination) -> Tensor
squeeze.default(Tensor self) -> Tensor
squeeze.dim(Tensor self, int dim) -> Tensor
squeeze.dims(Tensor self, int[] dim) -> Tensor
unsqueeze.default(Tensor self, int dim) -> Tensor
expand.default(Tensor self, int[] size, bool implicit=false) -> Tensor
expand_as.default(Tensor self, Tensor other) -> Tensor
repeat.default(Tensor self, int[] repeats) -> Tensor
repeat_interleave.self_int(Tensor self, int repeats, int? dim=null, int? output_size=null) -> Tensor
slice.Tensor(Tensor self, int dim=0, int? start=null, int? end=null, int step=1) -> Tensor
select.int(Tensor self, int dim, int index) -> Tensor
narrow.default(Tensor self, int dim, int start, int length) -> Tensor
chunk.default(Tensor self, int chunks, int dim=0) -> Tensor[]
split.Tensor(Tensor self, int split_size, int dim=0) -> Tensor[]
split_with_sizes.default(Tensor self, int[] split_sizes, int dim=0) -> Tensor[]
unbind.int(Tensor self, int dim=0) -> Tensor[]
cat.default(Tensor[] tensors, int dim=0) -> Tensor
stack.default(Tensor[] tensors, int dim=0) -> Tensor
roll.default(Tensor self, int[] shifts, int[] dims=[]) -> Tensor
flip.default(Tensor self, int[] dims) -> Tensor
tril.default(Tensor self, int diagonal=0) -> Tensor
triu.default(Tensor self, int diagonal=0) -> Tensor
contiguous.default(Tensor self) -> Tensor
clone.default(Tensor self) -> Tensor
detach.default(Tensor self) -> Tensor
alias.default(Tensor self) -> Tensor
to.dtype(Tensor self, dtype dtype, bool copy=false) -> Tensor
type_as.default(Tensor self, Tensor other) -> Tensor
""",
    "Choosing": """
gather.default(Tensor self, int dim, Tensor index, bool sparse_grad=false) -> Tensor
index_select.default(Tensor self, int dim, Tensor index) -> Tensor
index.Tensor(Tensor self, Tensor?[] indices) -> Tensor
masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor
where.self(Tensor condition, Tensor self, Tensor other) -> Tensor
where.ScalarOther(Tensor condition, Tensor self, Scalar other) -> Tensor
where.ScalarSelf(Tensor condition, Scalar self, Tensor other) -> Tensor
where.Scalar(Tensor condition, Scalar self, Scalar other) -> Tensor
""",
    "New tensors": """
zeros.default(int[] size, dtype? dtype=null) -> Tensor
ones.default(int[] size, dtype? dtype=null) -> Tensor
full.default(int[] size, Scalar fill_value, dtype? dtype=null) -> Tensor
arange.default(Scalar end, dtype? dtype=null) -> Tensor
arange.start(Scalar start, Scalar end, dtype? dtype=null) -> Tensor
arange.start_step(Scalar start, Scalar end, Scalar step=1, dtype? dtype=null) -> Tensor
rand.default(int[] size, dtype? dtype=null) -> Tensor
randn.default(int[] size, dtype? dtype=null) -> Tensor
zeros_like.default(Tensor self, dtype? dtype=null) -> Tensor
ones_like.default(Tensor self, dtype? dtype=null) -> Tensor
full_like.default(Tensor self, Scalar fill_value, dtype? dtype=null) -> Tensor
rand_like.default(Tensor self, dtype? dtype=null) -> Tensor
randn_like.default(Tensor self, dtype? dtype=null) -> Tensor
new_zeros.default(Tensor self, int[] size, dtype? dtype=null) -> Tensor
new_ones.default(Tensor self, int[] size, dtype? dtype=null) -> Tensor
new_full.default(Tensor self, int[] size, Scalar fill_value, dtype? dtype=null) -> Tensor
scalar_tensor.default(Scalar s, dtype? dtype=null) -> Tensor
""",
    "Losses": """
mse_loss.default(Tensor self, Tensor target, int reduction=1) -> Tensor
cross_entropy_loss.default(Tensor self, Tensor target, Tensor? weight=null, int reduction=1, int
    ignore_index=-100, float label_smoothing=0.0) -> Tensor
""",
    "Written into a buffer": """
add_.Tensor(Tensor self, Tensor other, Scalar alpha=1) -> ()
mul_.Tensor(Tensor self, Tensor other) -> ()
copy_.default(Tensor self, Tensor src) -> ()
""",
    "Whole numbers": """
sym_size.int(Tensor self, int dim) -> int
int.add(int a, int b) -> int
int.sub(int a, int b) -> int
int.mul(int a, int b) -> int
int.floordiv(int a, int b) -> int
int.mod(int a, int b) -> int
getitem.default(Tensor[] self, int index) -> Tensor
""",
}
