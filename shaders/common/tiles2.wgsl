// A number of each of 2 tiles, of conv3d_winograd.wgsl.
alias Tiles = vec2f;
const TILES: u32 = 2u;
