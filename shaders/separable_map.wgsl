// common/separable.wgsl and common/max_pool.wgsl over feature maps, and over flat images along an axis where four numbers stand
// together.
alias Element = vec4f;
alias Index = vec4i;
