//! What clusters run many times: parts of a folder of scans, and the recipes that start them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::*;

fn labels(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let files = entries.map(|entry| entry.unwrap().path());
    let finished = files.filter(|path| path.extension().is_some_and(|end| end == "gz"));
    finished
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn parts_of_a_folder_have_every_scan_once_and_can_be_repeated() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let tiny = "--arch obelisk --size 16,16,16 --spacing 4,4,4 --epochs 1 --steps 2 --batch 1 --samples 64";
    let train = ["train", data().to_str().unwrap(), "--out", &text("run")].map(str::to_owned);
    let train: Vec<&str> = train.iter().map(String::as_str).chain(tiny.split(' ')).collect();
    done(&obelisk(&train));

    // 40 scans of 20 cases.
    std::fs::create_dir(path("scans")).unwrap();
    let mut scans: Vec<PathBuf> = std::fs::read_dir(data().join("imagesTr"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    scans.sort();
    let named = scans.iter().cycle().take(40).enumerate();
    named.for_each(|(i, scan)| {
        std::fs::copy(scan, path("scans").join(format!("scan_{i:02}.nii.gz"))).unwrap();
    });
    let predict = |labels: &str, more: &[&str]| {
        let mut command = command();
        command.args(["predict", "--model", &text("run/last.safetensors")]);
        command
            .args(["--input", &text("scans"), "--output", &text(labels)])
            .args(more);
        command
    };
    let run = |mut command: Command| offline(|| command.output()).unwrap();
    done(&run(predict("whole", &[])));

    // The second part is killed once its first scan is done.
    let mut killed = predict("parts", &["--part", "1/4"]);
    let was_killed = killed_when(&mut killed, || !labels(&path("parts")).is_empty());
    let before = labels(&path("parts")).len();
    let mut told = BTreeSet::new();
    for part in ["2/4", "0/4", "3/4", "1/4"] {
        for line in done(&run(predict("parts", &["--part", part]))).lines() {
            assert!(told.insert(line.to_owned()), "{line} twice");
        }
    }
    assert!(!was_killed || (1..40).contains(&before));
    assert_eq!(told.len(), 40 - before);
    assert_eq!(labels(&path("parts")).len(), 40);
    assert!(labels(&path("parts")) == labels(&path("whole")));
    // Repeated, it does nothing; forced, its own scans anew.
    assert_eq!(done(&run(predict("parts", &["--part", "1/4"]))), "");
    let again = done(&run(predict("parts", &["--part", "1/4", "--force"])));
    assert!((1..40).contains(&again.lines().count()), "{again}");
    assert!(labels(&path("parts")) == labels(&path("whole")));

    let scan = path("scans/scan_00.nii.gz");
    let scan = scan.to_str().unwrap();
    let one = [
        "predict",
        "--model",
        &text("run/last.safetensors"),
        "--input",
        scan,
    ]
    .map(str::to_owned);
    let mut one: Vec<&str> = one.iter().map(String::as_str).collect();
    let output = text("one.nii.gz");
    one.extend(["--output", &output, "--part", "0/4"]);
    refused(&obelisk(&one), 2, "--part takes a folder");
    refused(
        &run(predict("parts", &["--part", "4/4"])),
        2,
        "there is no part 4: they are 0/4 to 3/4",
    );
}

fn cluster() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/cluster")
}

/// Every file of the recipes.
fn files() -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![cluster()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { &mut folders } else { &mut found }.push(path);
        }
    }
    found
}

#[test]
fn recipes_call_commands_with_options_that_they_have() {
    let help = |command: &str| String::from_utf8(obelisk(&[command, "--help"]).stdout).unwrap();
    let helps = ["train", "crossval", "predict"].map(|command| (command, help(command)));
    let mut calls = 0;
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        // Lines that go on are one; a container's arguments are a list.
        let joined = text.replace("\\\n", " ").replace("\"\n        \"", "");
        let lists = joined.split("args:\n").skip(1).map(|list| {
            let end = list.find("          resources").unwrap();
            list[..end].replace("            - ", " ").replace('\n', "")
        });
        let lines = joined
            .lines()
            .filter_map(|line| Some(line.split_once("obelisk ")?.1.to_owned()));
        for call in lists.chain(lines) {
            let mut words = call.split(|c: char| c.is_whitespace() || c == '=' || c == '"');
            let command = words.find(|word| !word.is_empty()).unwrap_or_default();
            let Some((_, help)) = helps.iter().find(|(name, _)| *name == command) else {
                continue;
            };
            for option in words.filter(|word| word.starts_with("--")) {
                let option = option.trim_end_matches(|c: char| !c.is_alphanumeric());
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{}: {command} has no {option}",
                    file.display()
                );
            }
            calls += 1;
        }
    }
    assert!(calls >= 9, "{calls}");
}

/// Runs a tool on the recipes; where it is not there it is skipped with a word on stderr.
fn check(tool: &str, arguments: &[&str], folder: &Path) {
    let output = match Command::new(tool).args(arguments).current_dir(folder).output() {
        Ok(output) => output,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: recipes by {tool} ({error})");
            return;
        }
    };
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{tool}: {out}{err}");
}

#[test]
fn recipes_pass_the_checks_of_their_tools() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let scripts = ["folds.sh", "ranks.sh", "scans.sh"];
    check("shellcheck", &scripts, &cluster().join("slurm"));
    let jobs = ["folds.yaml", "scans.yaml"];
    check(
        "kubernetes-validate",
        &["--strict", jobs[0], jobs[1]],
        &cluster().join("kubernetes"),
    );
    // It fetches the schemas that it compares with.
    if std::env::var_os("OBELISK_KUBECONFORM").is_some() {
        check(
            "kubeconform",
            &["-strict", jobs[0], jobs[1]],
            &cluster().join("kubernetes"),
        );
    }
    copy(&cluster(), &path("cluster"));
    let snakemake = path("cluster/snakemake");
    for folder in ["dataset", "scans"] {
        std::fs::create_dir(snakemake.join(folder)).unwrap();
    }
    std::fs::write(snakemake.join("model.safetensors"), "").unwrap();
    check("snakemake", &["-n", "--quiet"], &snakemake);
    check("nextflow", &["lint", "main.nf"], &path("cluster/nextflow"));
}
