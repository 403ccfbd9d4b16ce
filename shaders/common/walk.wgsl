// How reductions walk a map's vec4s of one block, or one value a voxel, without dividing at each: eight neighbouring
// invocations take a run of them together, from slice to slice. Eight vec4s are a cache line or two, so that each walk reads
// memory from one end to the other; steps as long as all invocations at once leave a page each time (benches/kernels.md).
// `walk` in op.rs makes the numbers.
struct Cursor { element: u32, end: u32, in_plane: u32, at: u32 }

fn first_element(walk: Walk, t: u32, block: u32) -> Cursor {
    let start = t / 8u * walk.run;
    let element = start + t % 8u;
    let in_plane = element % walk.plane;
    let at = (element / walk.plane * walk.blocks + block) * walk.plane + in_plane;
    return Cursor(element, min(start + walk.run, walk.elements), in_plane, at);
}

fn next_element(walk: Walk, cursor: Cursor) -> Cursor {
    let in_plane = cursor.in_plane + walk.in_plane;
    let at = cursor.at + walk.at;
    let wraps = in_plane >= walk.plane;
    return Cursor(
        cursor.element + 8u,
        cursor.end,
        select(in_plane, in_plane - walk.plane, wraps),
        select(at, at + (walk.blocks - 1u) * walk.plane, wraps),
    );
}
