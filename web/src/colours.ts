// The labels' colours, in the order of the network's labels: those of the pictures that the command line draws.

const COLOURS = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [204, 121, 167], [213, 94, 0],
  [0, 114, 178], [150, 220, 90], [170, 120, 255], [255, 130, 130], [0, 200, 200], [190, 160, 110],
] as const

/** Red, green and blue, 0 to 255, of the foreground label at that position. */
export function colour(index: number): readonly [number, number, number] {
  return COLOURS[index % COLOURS.length]
}
