// common/separable.wgsl over feature maps, and over flat images along an axis where four numbers stand together.
alias Element = vec4f;
