//! The program left alone with odd requests: inputs that are outputs, readers that go away, numbers that can't be, signals.
//! Each ends in its exit code and one clear line, and nothing that was there is lost.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::program::{self, offline};

fn program(arguments: &[&str]) -> Command {
    let mut command = program::command();
    command.args(arguments).stdin(Stdio::null());
    command
}

fn obelisk(arguments: &[&str]) -> Output {
    offline(|| program(arguments).output()).expect("the program starts")
}

/// Refused with this code, and a complaint that has these parts, in one line that is no panic.
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A folder with copies of the sample's weights, of three scans with labels, and of a table of points.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            folder: tempfile::tempdir().unwrap(),
        };
        let data = repository().join("examples/data");
        for (from, to) in [("imagesTs", "scans"), ("labelsTs", "labels")] {
            std::fs::create_dir(bench.path(to)).unwrap();
            for (_, files) in obelisk::dataset::scans(&data.join(from), 1)
                .unwrap()
                .iter()
                .take(3)
            {
                let name = files[0].file_name().unwrap();
                std::fs::copy(&files[0], bench.path(to).join(name)).unwrap();
            }
        }
        let weights = repository().join("examples/weights/hippocampus.safetensors");
        std::fs::copy(weights, bench.path("net.safetensors")).unwrap();
        std::fs::write(bench.path("points.csv"), "1,2,3\n").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every file below with its bytes.
    fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![self.folder.path().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push((path.clone(), std::fs::read(path).unwrap())),
                }
            }
        }
        files.sort();
        files
    }

    /// Runs a command in whose arguments `@` stands for the folder.
    fn run(&self, command: &str) -> Output {
        let folder = text(self.folder.path());
        let arguments: Vec<String> = command.split(' ').map(|a| a.replace('@', folder)).collect();
        obelisk(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[test]
fn no_input_is_ever_an_output() {
    let bench = Bench::new();
    let scan = std::fs::read_dir(bench.path("scans"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::copy(&scan, bench.path("scan.nii.gz")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(bench.path("scans"), bench.path("folder")).unwrap();
        // A row's predictions are the dataset's labels, and its table is the recipe.
        std::fs::create_dir_all(bench.path("comparison/unet")).unwrap();
        symlink(
            bench.path("data/labelsTr"),
            bench.path("comparison/unet/predictions"),
        )
        .unwrap();
        std::fs::create_dir(bench.path("other")).unwrap();
        symlink(bench.path("recipe.toml"), bench.path("other/table.csv")).unwrap();
        std::os::unix::fs::symlink(bench.path("scan.nii.gz"), bench.path("link.nii.gz")).unwrap();
        std::fs::hard_link(bench.path("scan.nii.gz"), bench.path("hard.nii.gz")).unwrap();
    }
    let prepared = bench.run("prepare --images @/scans --labels @/labels --classes a=1,b=2 --out @/data");
    assert_eq!(prepared.status.code(), Some(0), "{prepared:?}");
    std::fs::write(
        bench.path("data/config.toml"),
        format!("dataset = {:?}\n", bench.path("data")),
    )
    .unwrap();
    std::fs::copy(bench.path("data/config.toml"), bench.path("recipe.toml")).unwrap();

    let mut commands = vec![
        "predict --model @/net.safetensors --input @/scans --output @/scans",
        "predict --model @/net.safetensors --input @/scans --output @/labels/../scans",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/scan.nii.gz",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/scans/../scan.nii.gz",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/x.nii.gz --logits @/net.safetensors",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/x.nii.gz --logits @/scan.nii.gz",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/x.nii.gz --logits @/x.nii.gz",
        "predict --model @/net.safetensors --input @/scans --output @/x --overlay @/scans",
        "predict --model @/net.safetensors --input @/scan.nii.gz --points @/points.csv --output @/points.csv",
        "predict --model @/net.safetensors --input @/scan.nii.gz --points @/points.csv --output @/scan.nii.gz",
        "predict --model @/net.safetensors --input @/scan.nii.gz --points @/points.csv --output @/net.safetensors",
        "import @/net.safetensors --output @/net.safetensors",
        "import @/x.pth --like @/net.safetensors --output @/net.safetensors",
        "predict --model @/net.safetensors --input @/scan.nii.gz --output @/x.nii.gz --label-table @/x.nii.gz",
        "offsets --model @/net.safetensors --output @/net.safetensors",
        "prepare --images @/data/imagesTr --labels @/data/labelsTr --classes a=1 --out @/data",
        "prepare --images @/scans --labels @/data/labelsTr --classes a=1 --out @/data",
        "train @/data --out @/data",
        "train @/data --out @/data/../data",
        "train --config @/data/config.toml --out @/data",
        "crossval @/data --arch unet --folds 3 --out @/data",
        "crossval --config @/data/config.toml --arch unet --folds 3 --out @/data/../data",
    ];
    if cfg!(unix) {
        commands.extend([
            "predict --model @/net.safetensors --input @/scans --output @/folder",
            "predict --model @/net.safetensors --input @/folder --output @/scans",
            "predict --model @/net.safetensors --input @/scan.nii.gz --output @/link.nii.gz",
            "predict --model @/net.safetensors --input @/link.nii.gz --output @/scan.nii.gz",
            "predict --model @/net.safetensors --input @/scan.nii.gz --output @/hard.nii.gz",
            "crossval @/data --arch unet --folds 3 --out @/comparison",
            "crossval --config @/recipe.toml --arch unet --folds 3 --out @/other",
        ]);
    }
    std::fs::write(bench.path("x.pth"), "").unwrap();
    let before = bench.contents();
    let reports: Vec<String> = before
        .iter()
        .filter(|(path, _)| path.starts_with(bench.path("labels")))
        .map(|(path, _)| {
            format!(
                "evaluate --predictions @/labels --labels @/labels --json {}",
                path.display()
            )
        })
        .collect();
    for command in commands.into_iter().map(str::to_owned).chain(reports) {
        for more in ["", " --force"] {
            let output = bench.run(&(command.clone() + more));
            assert_eq!(output.status.code(), Some(2), "{command}{more}: {output:?}");
            assert!(bench.contents() == before, "{command}{more} changed a file");
        }
    }
}

#[test]
fn what_cannot_be_written_is_told_before_anything_is_computed() {
    let bench = Bench::new();
    let scan = std::fs::read_dir(bench.path("scans"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::copy(&scan, bench.path("scan.nii.gz")).unwrap();
    let predict = "predict --model @/net.safetensors --input";
    for (command, part) in [
        (format!("{predict} @/missing --output @/labels"), "--input"),
        (format!("{predict} @/missing.nii.gz --output @/labels"), "--input"),
        (
            format!("{predict} @/scan.nii.gz --output @/missing/x.nii.gz"),
            "missing takes no files",
        ),
        (
            format!("{predict} @/scan.nii.gz --output @/points.csv/x.nii.gz"),
            "takes no files",
        ),
        (
            format!("{predict} @/scan.nii.gz --output @/x.nii.gz --logits @/labels"),
            "is a folder",
        ),
        (
            format!("{predict} @/scan.nii.gz --output @/x.nii.gz --overlay @/points.csv"),
            "points.csv",
        ),
        (format!("{predict} @/scans --output @/points.csv"), "points.csv"),
        (
            format!("{predict} @/scan.nii.gz --points @/points.csv --output @/missing/x.csv"),
            "takes no files",
        ),
        (
            "import @/missing.pth --output @/x.safetensors".into(),
            "missing.pth",
        ),
        (
            "offsets --model @/net.safetensors --output @/missing/x.png".into(),
            "takes no files",
        ),
        (
            "evaluate --predictions @/labels --labels @/labels --json @/missing/x".into(),
            "takes no files",
        ),
        (
            "prepare --images @/scans --labels @/labels --classes a=1 --out @/points.csv".into(),
            "points.csv",
        ),
    ] {
        let output = bench.run(&command);
        refused(&output, 1, &[part]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(told.lines().count(), 1, "{command}: {told}");
        assert!(!told.contains("adapter"), "{command} opened a device: {told}");
    }
    assert!(!bench.path("x.nii.gz").exists() && !bench.path("x.png").exists());
}

#[test]
fn values_that_make_no_sense_are_wrong_usage() {
    let bench = Bench::new();
    let data = repository().join("examples/data");
    let train = format!("train {} --out @/run", data.display());
    let predict = "predict --model @/net.safetensors --input @/scans --output @/x";
    let prepare = "prepare --images @/scans --labels @/labels --classes a=1 --out @/x";
    let mut commands = Vec::new();
    for (option, values) in [
        ("--epochs", &["0", "-1", "1.5", "nan", "99999999999999999999"][..]),
        ("--batch", &["0", "x"]),
        ("--samples", &["0", "4294967296"]),
        ("--steps", &["0"]),
        ("--validate-every", &["0"]),
        ("--learning-rate", &["nan", "inf", "0", "-1", "1e39", ""]),
        ("--weight-decay", &["nan", "-1", "inf"]),
        ("--affine", &["nan", "-0.1", "inf"]),
        (
            "--spacing",
            &["nan,1,1", "0,1,1", "1,1", "1,1,1,1", "-1,1,1", "inf,1,1"],
        ),
        (
            "--size",
            &[
                "0,1,1",
                "1,1",
                "65536,65536,65536",
                "-1,1,1",
                "99999999999999999999,1,1",
            ],
        ),
        ("--orient", &["XYZ", "RRR", "LA"]),
        ("--loss", &["none"]),
        ("--schedule", &["none"]),
        ("--folds", &["0", "1", "half"]),
        ("--fold", &["x", "5", "18446744073709551615"]),
        ("--backend", &["opengl", "", "Vulkan!"]),
        ("--forms", &["nonesuch"]),
    ] {
        commands.extend(values.iter().map(|value| format!("{train} {option}={value}")));
    }
    for (option, values) in [
        ("--grid-spacing", &["nan", "0", "-1", "inf"][..]),
        ("--orient", &["none"]),
        ("--backend", &["gl"]),
    ] {
        commands.extend(values.iter().map(|value| format!("{predict} {option}={value}")));
    }
    for (option, values) in [
        ("--spacing", &["nan,1,1", "0,0,0"][..]),
        ("--size", &["0,0,0", "4096,4096,4096"]),
        ("--classes", &["a", "a=0", "a=1,b=1", "a=1,a=2"]),
    ] {
        commands.extend(values.iter().map(|value| format!("{prepare} {option}={value}")));
    }
    for more in [
        "--size 4096,4096,4096",
        "--size 0,1,1",
        "--labels 1",
        "--labels 0",
        "--labels nan",
    ] {
        commands.push(format!("info --arch unet {more}"));
    }
    for more in [
        "--size 4096,4096,4096",
        "--batch 0",
        "--steps 0",
        "--labels 0",
        "--sparse 1",
        "--layer 1,2",
    ] {
        commands.push(format!("bench {more}"));
    }
    commands.push("info --backend webgpu".into());
    commands.push("offsets --model @/net.safetensors --output @/x.png --size 0,1,1".into());
    for command in commands {
        let output = bench.run(&command);
        assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{command}: {told}");
    }
    assert!(!bench.path("run").exists() && !bench.path("x").exists());
}

#[test]
fn every_command_helps_with_two_examples() {
    let help = |arguments: &[&str]| {
        let output = obelisk(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let all = help(&["--help"]);
    let commands = all.split_once("Commands:\n").unwrap().1;
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for name in commands {
        for flag in ["-h", "--help"] {
            let text = help(&[name, flag]);
            let (_, examples) = text.split_once("Examples:\n").unwrap();
            let start = format!("  obelisk {name}");
            assert_eq!(
                examples.lines().filter(|l| l.starts_with(&start)).count(),
                2,
                "{text}"
            );
        }
    }
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = obelisk(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            script.contains("crossval") && script.contains("learning-rate"),
            "{shell}"
        );
    }
    assert_eq!(bench.run("man @/man").status.code(), Some(0));
    let page = std::fs::read_to_string(bench.path("man/obelisk-train.1")).unwrap();
    assert!(
        page.contains("weight\\-decay") && page.contains("Examples"),
        "{page}"
    );
    assert!(bench.path("man/obelisk.1").exists() && bench.path("man/obelisk-predict.1").exists());
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    /// A pipe that nobody reads.
    fn broken() -> Stdio {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer.into()
    }

    /// Needs a disk that can be filled, and so a system that lets its users mount one.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_below_the_drivers_cache_ends_nothing() {
        if !program::adapter() {
            return;
        }
        let disk = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=64k none \"$XDG_CACHE_HOME\" || exit 99
            head -c 100000 /dev/zero >\"$XDG_CACHE_HOME/filler\" 2>/dev/null
            exec \"$@\"";
        let layer = "bench --layer 4,2,1 --size 8,8,8 --inference --steps 1";
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--map-root-user",
                "sh",
                "-c",
                script,
                "sh",
                env!("CARGO_BIN_EXE_obelisk"),
            ])
            .args(layer.split(' '))
            .env("XDG_CACHE_HOME", disk.path())
            .env_remove("MESA_SHADER_CACHE_DIR")
            .output();
        match &output {
            Ok(output) if output.status.success() => {
                let told = String::from_utf8_lossy(&output.stderr);
                assert!(
                    told.contains("No space left on device"),
                    "the disk was not full: {told}"
                );
            }
            Ok(output) if output.status.code() != Some(99) && !output.stderr.starts_with(b"unshare") => {
                panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
            }
            refused => eprintln!("SKIPPED: a full disk ({refused:?})"),
        }
    }

    fn full() -> Option<Stdio> {
        File::options()
            .write(true)
            .open("/dev/full")
            .ok()
            .map(Stdio::from)
    }

    /// Commands with results on stdout, none of which needs an adapter.
    fn talkative(bench: &Bench) -> Vec<Vec<String>> {
        [
            "--help",
            "--version",
            "train --help",
            "info --arch unet",
            "info --arch unet --json",
            "info --arch unet --plan",
            "completions bash",
            "man @/man",
            "evaluate --predictions @/labels --labels @/labels --json @/report.json --force",
            "prepare --images @/scans --labels @/labels --classes a=1 --out @/data --force",
            "import @/net.safetensors --output @/copy.safetensors --force",
        ]
        .iter()
        .map(|c| {
            c.split(' ')
                .map(|a| a.replace('@', text(bench.folder.path())))
                .collect()
        })
        .collect()
    }

    #[test]
    fn a_reader_that_has_enough_ends_no_command_and_is_no_failure() {
        let bench = Bench::new();
        for arguments in talkative(&bench) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = program(&arguments).stdout(broken()).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(
                !told.contains("panicked") && !told.contains("error"),
                "{arguments:?}: {told}"
            );
            let output = program(&arguments).stderr(broken()).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
            let status = program(&arguments)
                .stdout(broken())
                .stderr(broken())
                .status()
                .unwrap();
            assert_eq!(status.code(), Some(0), "{arguments:?}");
        }
        for file in [
            "man/obelisk.1",
            "report.json",
            "data/dataset.json",
            "copy.safetensors",
        ] {
            assert!(bench.path(file).exists(), "{file} is not finished");
        }
        let missing = [
            "predict", "--model", "/missing", "--input", "/missing", "--output", "x.nii",
        ];
        for stderr in [broken(), full().unwrap_or_else(broken)] {
            assert_eq!(program(&missing).stderr(stderr).status().unwrap().code(), Some(1));
        }
        assert_eq!(
            program(&["train"]).stderr(broken()).status().unwrap().code(),
            Some(2)
        );
    }

    #[test]
    fn results_that_find_no_room_are_one_line_of_error() {
        if full().is_none() {
            eprintln!("SKIPPED: the system has no /dev/full");
            return;
        }
        let bench = Bench::new();
        for arguments in talkative(&bench) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = program(&arguments).stdout(full().unwrap()).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            let errors: Vec<&str> = told
                .lines()
                .filter(|l| l.starts_with("error: stdout: "))
                .collect();
            assert_eq!(errors.len(), 1, "{arguments:?}: {told}");
            assert!(!told.contains("panicked"), "{arguments:?}: {told}");
            let status = program(&arguments)
                .stderr(full().unwrap())
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(status.code(), Some(0), "{arguments:?}");
        }
        for file in [
            "man/obelisk.1",
            "report.json",
            "data/dataset.json",
            "copy.safetensors",
        ] {
            assert!(bench.path(file).exists(), "{file} is not finished");
        }
    }

    #[test]
    fn a_log_that_nobody_reads_stops_no_command() {
        let bench = Bench::new();
        let mut child = program(&["info", "--arch", "unet", "--plan"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        drop(bench);
    }
}

#[test]
fn sizes_beyond_what_kernels_count_are_refused_and_the_others_answered() {
    for arch in ["unet", "obelisk-hybrid", "obelisk"] {
        for size in [
            "1,1,1",
            "3,3,3",
            "2147483647,1,1",
            "1,1,2147483647",
            "1048576,16,16",
            "768,768,768",
            "1290,1290,1290",
        ] {
            let output = obelisk(&["info", "--arch", arch, "--size", size]);
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!told.contains("panicked"), "{arch} {size}: {told}");
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{arch} {size}: {output:?}"
            );
        }
        let many = obelisk(&["info", "--arch", arch, "--labels", "100000000"]);
        refused(&many, 1, &["elements"]);
    }
    let data = repository().join("examples/data");
    let bench = Bench::new();
    let train = format!("train {} --epochs 1 --out @/run", data.display());
    for command in [
        "bench --size 1290,1290,1290".to_owned(),
        "bench --arch obelisk --size 16,16,16 --sparse 1,1000000000".to_owned(),
        "bench --size 8,8,8 --batch 1000000000".to_owned(),
        "bench --size 8,8,8 --layer 1000000000,4,1".to_owned(),
        format!("{train} --size 1290,1290,1290"),
        format!("{train} --arch obelisk --samples 1000000000"),
        format!("{train} --size 1,1,1"),
        format!("{train} --size 3,3,3 --fold 0"),
    ] {
        let output = bench.run(&command);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{command}: {told}");
        assert_eq!(output.status.code(), Some(1), "{command}: {told}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_training_with_its_code_and_frees_its_folder() {
    use obelisk::train::RunFolder;
    let bench = Bench::new();
    let data = repository().join("examples/data");
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let run = bench.path(name);
        let train = || {
            let mut command = program(&["train", text(&data), "--size", "24,32,24", "--out", text(&run)]);
            command.stderr(Stdio::piped());
            command
        };
        let mut child = offline(|| train().spawn()).unwrap();
        while !run.join("lock").exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before it began");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        refused(&offline(|| train().output()).unwrap(), 1, &["another training"]);
        let kill = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        refused(&child.wait_with_output().unwrap(), code, &["stopped"]);
        assert!(RunFolder::lock(&run).is_ok(), "the lock ends with its process");
    }
}

#[test]
fn what_takes_more_memory_than_allowed_is_refused_before_it_is_computed() {
    let bench = Bench::new();
    let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    let data = repository().join("examples/data");
    let before = bench.contents();
    let refusal = ["left of the limit", "--memory allows more"];
    let predict = [
        "--model",
        &path("net.safetensors"),
        "--output",
        &path("out"),
        "--input",
        &path("scans"),
    ];
    refused(
        &obelisk(&[&["predict", "--memory", "1"], &predict[..]].concat()),
        1,
        &refusal,
    );
    let evaluate = [
        "--predictions",
        &path("labels"),
        "--labels",
        &path("labels"),
        "--memory",
        "1",
    ];
    refused(&obelisk(&[&["evaluate"], &evaluate[..]].concat()), 1, &refusal);
    let train = [
        "train",
        text(&data),
        "--out",
        &path("run"),
        "--arch",
        "unet-lean",
        "--size",
        "64,64,64",
    ];
    let cases = obelisk(&[&train[..], &["--memory", "1"]].concat());
    refused(
        &cases,
        1,
        &[&refusal[..], &["about 0 of them would fit"]].concat(),
    );
    for nonsense in ["--memory=0", "--memory=-1", "--memory=much"] {
        let call = [&["predict", nonsense], &predict[..]].concat();
        refused(&obelisk(&call), 2, &["--memory"]);
    }
    std::fs::remove_dir(bench.path("out")).unwrap();
    // All that a refused training leaves.
    std::fs::remove_file(bench.path("run").join("lock")).unwrap();
    let after = bench.contents();
    assert!(after == before, "something was written");

    // Where the device's memory is the machine's, it counts.
    let Some(device) = crate::common::devices().first() else {
        return;
    };
    if device.caps().target.is_cpu() {
        let step = obelisk(&[&train[..], &["--batch", "16", "--memory", "600"]].concat());
        refused(
            &step,
            1,
            &[
                "no room for a training step",
                "a batch of",
                "would fit; --memory allows more",
            ],
        );
    }
}
