// Folds and parts of a folder of scans as Nextflow's tasks; nextflow.config says where things are.
nextflow.enable.dsl = 2

process fold {
    label 'gpu'
    publishDir params.out, mode: 'copy'

    input:
    path dataset
    val fold

    output:
    path "runs/${params.network}", emit: runs

    script:
    """
    obelisk crossval ${dataset} --arch ${params.network} --out runs --folds ${params.folds} --fold ${fold} ${params.options}
    """
}

process table {
    publishDir params.out, mode: 'copy'

    input:
    path dataset
    path runs, stageAs: 'fold?/*'

    output:
    path 'comparison/table.*'

    // The folders of folds have nothing in common: copied into one, they are the cross-validation.
    script:
    """
    mkdir comparison
    for runs in fold*/*; do cp -rL "\$runs" comparison/; done
    obelisk crossval ${dataset} --arch ${params.network} --out comparison --folds ${params.folds} --table
    """
}

process part {
    label 'gpu'
    publishDir params.labels, mode: 'copy'

    input:
    path model
    path scans
    val part

    output:
    path 'labels/*.nii.gz', optional: true

    script:
    """
    obelisk predict --model ${model} --input ${scans} --output labels --part ${part}/${params.parts}
    """
}

workflow {
    dataset = file(params.dataset, checkIfExists: true)
    fold(dataset, Channel.of(0..<params.folds))
    table(dataset, fold.out.runs.collect())
    if (params.scans) {
        model = file(params.model, checkIfExists: true)
        scans = file(params.scans, checkIfExists: true)
        part(model, scans, Channel.of(0..<params.parts))
    }
}
