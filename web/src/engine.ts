// The page's side of the worker: calls as promises, progress, and a new worker when one breaks down.

import type { Calls, Failure, Name, ToPage, ToWorker } from './messages'

/** An error of the engine; `name` tells its kind. */
export class EngineError extends Error {
  constructor({ name, message }: Failure) {
    super(message)
    this.name = name
  }
}

/** Errors that leave the engine in order; after any other a new worker takes over. */
const EXPECTED = ['ScanError', 'WeightsError', 'DeviceError', 'TooLargeError', 'AbortError', 'NoWebGpuError']

interface Waiting {
  resolve: (answer: never) => void
  reject: (error: Error) => void
}

export class Engine {
  /** Called with what is being done and the share done, 0 to 1. */
  onProgress: (phase: string, share: number) => void = () => {}
  /** Called after each step of a training. */
  onStep: (step: { loss: number; epoch: number; share: number }) => void = () => {}
  /** Called after a breakdown: what the worker knew, scan and network, is gone. */
  onRestart: () => void = () => {}

  #worker = this.#start()
  #waiting = new Map<number, Waiting>()
  #next = 0
  #answered = false

  call<N extends Name>(call: N, ...args: Calls[N]['args']): Promise<Calls[N]['answer']> {
    const id = this.#next++
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      this.#worker.postMessage({ id, call, args } as ToWorker)
    })
  }

  /** Stops the segmentation that runs, at its next part. */
  stop(): void {
    this.#worker.postMessage({ stop: true } satisfies ToWorker)
  }

  #start(): Worker {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' })
    worker.onmessage = ({ data }: MessageEvent<ToPage>) => this.#hear(data)
    worker.onerror = (event) => this.#breakdown(event.message || 'It did not start; reload the page.')
    return worker
  }

  #hear(message: ToPage): void {
    this.#answered = true
    if ('phase' in message) {
      this.onProgress(message.phase, message.share)
      return
    }
    if ('step' in message) {
      this.onStep(message.step)
      return
    }
    const waiting = this.#waiting.get(message.id)
    this.#waiting.delete(message.id)
    if ('answer' in message) {
      waiting?.resolve(message.answer as never)
      return
    }
    const { failure } = message
    if (EXPECTED.includes(failure.name)) {
      waiting?.reject(new EngineError(failure))
    } else {
      waiting?.reject(new EngineError({ name: 'BreakdownError', message: failure.message }))
      this.#breakdown(failure.message)
    }
  }

  #breakdown(message: string): void {
    this.#worker.terminate()
    // One that never answered would break down again at once.
    if (this.#answered) {
      this.#answered = false
      this.#worker = this.#start()
    }
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    waiting.forEach(({ reject }) => reject(new EngineError({ name: 'BreakdownError', message })))
    this.onRestart()
  }
}
