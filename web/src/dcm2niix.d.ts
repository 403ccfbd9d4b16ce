declare module '@niivue/dcm2niix' {
  /** dcm2niix in a worker of its own. */
  export class Dcm2niix {
    init(): Promise<unknown>
    input(files: File[]): { run(): Promise<File[]> }
  }
}
