// A number of each of 4 tiles, of conv3d_winograd.wgsl.
alias Tiles = vec4f;
const TILES: u32 = 4u;
