// common/separable.wgsl over flat images: one number an element.
alias Element = f32;
