declare module '@niivue/dcm2niix' {
  /** dcm2niix in a worker of its own. */
  export class Dcm2niix {
    worker: Worker | null
    init(): Promise<unknown>
    /** Fails with an exit code where no file is DICOM. */
    input(files: File[]): { run(): Promise<File[]> }
  }
}
