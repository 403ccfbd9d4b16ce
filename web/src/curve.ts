// The loss of each step of a training, drawn as SVG.

const [WIDTH, HEIGHT, LEFT, EDGE] = [320, 140, 34, 12]
/** Steps that the smooth line averages over. */
const WINDOW = 9

function element(name: string, attributes: Record<string, string | number>, text = ''): SVGElement {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name)
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, String(value)))
  made.textContent = text
  return made
}

/** Draws losses, step by step, with their running mean; `share` of the training is done. */
export function drawCurve(svg: SVGElement, losses: number[], share: number): void {
  const highest = Math.max(...losses, 1e-9)
  const steps = Math.max(losses.length / Math.max(share, 1e-9), 2)
  const x = (step: number) => LEFT + ((WIDTH - LEFT - EDGE) * step) / (steps - 1)
  const y = (loss: number) => HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (loss / highest)
  const line = (values: number[]) => values.map((loss, step) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(' ')
  const means = losses.map((_, step) => {
    const window = losses.slice(Math.max(0, step - WINDOW + 1), step + 1)
    return window.reduce((sum, loss) => sum + loss, 0) / window.length
  })
  svg.replaceChildren(
    element('line', { x1: LEFT, x2: WIDTH - EDGE, y1: y(0), y2: y(0) }),
    element('text', { x: 4, y: y(0) + 3 }, '0'),
    element('text', { x: 4, y: y(highest) + 6 }, highest.toPrecision(3)),
    element('polyline', { points: line(losses) }),
    element('polyline', { class: 'mean', points: line(means) }),
  )
}
