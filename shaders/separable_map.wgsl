// common/separable.wgsl over feature maps: four channels an element.
alias Element = vec4f;
