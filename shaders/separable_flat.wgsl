// common/separable.wgsl and common/max_pool.wgsl over flat images.
alias Element = f32;
alias Index = i32;
