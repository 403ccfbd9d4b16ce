//! Training on several processes over MPI. `scripts/mpi.sh` builds and runs it; it is a program of its own, so that the suite need
//! not be built again with the feature. Without `mpirun` it is skipped with a word on stderr.
#![cfg(all(feature = "mpi", feature = "cli", unix))]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_obelisk");

/// `mpirun` with the program, as a container and a machine of few cores need it; `None` where there is none.
fn ranks(count: usize) -> Option<Command> {
    let found = Command::new("mpirun").arg("--version").output();
    if found.is_err() {
        assert!(std::env::var_os("STRICT").is_none(), "there is no mpirun");
        eprintln!("SKIPPED: ranks over MPI (there is no mpirun)");
        return None;
    }
    let mut command = Command::new("mpirun");
    command.args([
        "-n",
        &count.to_string(),
        "--oversubscribe",
        "--allow-run-as-root",
        PROGRAM,
    ]);
    Some(quiet(command))
}

fn alone() -> Command {
    quiet(Command::new(PROGRAM))
}

fn quiet(mut command: Command) -> Command {
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data")
}

/// The hippocampus samples at 4 mm: two epochs take seconds.
fn train(mut command: Command, run: &Path, more: &str) -> Command {
    let settings = "--size 16,16,16 --spacing 4,4,4 --fold 0 --folds 4 --epochs 2 --batch 1";
    command.arg("train").arg(data()).arg("--out").arg(run);
    command.args(settings.split(' ')).args(more.split(' '));
    command
}

fn done(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

fn weights(run: &Path) -> [Vec<u8>; 2] {
    ["last", "best"].map(|name| std::fs::read(run.join(format!("{name}.safetensors"))).unwrap())
}

const SPARSE: &str = "--arch obelisk --samples 64 --steps 12";

#[test]
fn ranks_write_the_bytes_of_one_process_that_accumulates() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [("hybrid", "--arch obelisk-hybrid"), ("obelisk", SPARSE)] {
        for count in [2, 3] {
            let run = |kind: &str| folder.path().join(format!("{name}-{count}-{kind}"));
            let Some(command) = ranks(count) else { return };
            let told = done(train(command, &run("ranks"), options).output().unwrap());
            for rank in 0..count {
                assert!(
                    told.contains(&format!("rank {rank} of {count}: adapter")),
                    "{told}"
                );
            }
            assert_eq!(told.matches("epoch 2/2").count(), 1, "only rank 0 logs: {told}");
            let accumulate = format!("{options} --accumulate {count}");
            done(train(alone(), &run("alone"), &accumulate).output().unwrap());
            assert!(
                weights(&run("ranks")) == weights(&run("alone")),
                "{name} on {count} ranks"
            );
        }
    }
}

/// The processes below one, by their arguments' first word.
fn ranks_of(launcher: &Child) -> Vec<u32> {
    let listed = Command::new("pgrep")
        .args(["-P", &launcher.id().to_string(), "-f", "train"])
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let mut numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort();
    numbers
}

/// Waits until a run has its first checkpoint, while a training with many steps an epoch goes on.
fn wait_for_checkpoint(launcher: &mut Child, run: &Path) {
    let start = Instant::now();
    while !run.join("checkpoint.safetensors").exists() {
        assert!(
            launcher.try_wait().unwrap().is_none(),
            "it ended before its first checkpoint"
        );
        assert!(start.elapsed() < Duration::from_secs(300));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = "--arch obelisk --samples 64 --steps 400 --validate-every 2";
    let run = |name: &str| folder.path().join(name);
    for victim in [1, 0] {
        let Some(command) = ranks(2) else { return };
        let name = format!("killed-{victim}");
        let mut command = train(command, &run(&name), options);
        let mut launcher = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_checkpoint(&mut launcher, &run(&name));
        let processes = ranks_of(&launcher);
        assert_eq!(processes.len(), 2);
        // Open MPI starts them in order.
        let killed = processes[victim];
        let start = Instant::now();
        assert!(
            Command::new("kill")
                .args(["-9", &killed.to_string()])
                .status()
                .unwrap()
                .success()
        );
        let output = launcher.wait_with_output().unwrap();
        let took = start.elapsed();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(took < Duration::from_secs(60), "{took:?}: {told}");
        assert_ne!(output.status.code(), Some(0));
        // What the other rank and mpirun say.
        let other = format!(
            "rank {}: rank {victim} has ended: its process {killed} is gone",
            1 - victim
        );
        assert!(
            told.contains(&other) || told.contains(&format!("process rank {victim}")),
            "{told}"
        );
        eprintln!(
            "rank {victim} of 2 killed: all ended after {:.1} s",
            took.as_secs_f64()
        );
        let left = Command::new("kill")
            .args(["-0"])
            .args(processes.iter().map(u32::to_string))
            .output();
        assert!(!left.unwrap().status.success(), "a rank is still there");

        let Some(command) = ranks(2) else { return };
        let mut command = command;
        command.args(["train", "--resume", "--out"]).arg(run(&name));
        done(command.output().unwrap());
    }
    // The run is another number of ranks' as well.
    let alone_run = run("alone");
    done(
        train(alone(), &alone_run, &format!("{options} --accumulate 2"))
            .output()
            .unwrap(),
    );
    for victim in [0, 1] {
        assert!(
            weights(&run(&format!("killed-{victim}"))) == weights(&alone_run),
            "rank {victim}"
        );
    }
}

#[test]
fn a_rank_without_an_mpirun_to_end_it_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let Some(mut launch) = ranks(2) else { return };
    // mpirun ends nothing: the ranks are on their own, as under a launcher that waits.
    launch.env("OMPI_MCA_orte_enable_recovery", "1");
    let mut command = train(
        launch,
        &run,
        "--arch obelisk --samples 64 --steps 400 --validate-every 2",
    );
    let mut launcher = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_checkpoint(&mut launcher, &run);
    let killed = ranks_of(&launcher)[1];
    let start = Instant::now();
    assert!(
        Command::new("kill")
            .args(["-9", &killed.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let output = launcher.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(start.elapsed() < Duration::from_secs(60), "{told}");
    assert!(
        told.contains(&format!("rank 1 has ended: its process {killed} is gone")),
        "{told}"
    );
}

#[test]
fn what_does_not_fit_the_ranks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let Some(command) = ranks(2) else { return };
    let output = train(command, &run, &format!("{SPARSE} --accumulate 3"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("--accumulate 3 can't be divided evenly among 2 ranks"),
        "{told}"
    );
    assert!(!run.exists());

    // A run of three batches a step goes on with three ranks, with one, and not with two.
    done(
        train(alone(), &run, &format!("{SPARSE} --accumulate 3"))
            .output()
            .unwrap(),
    );
    let Some(mut command) = ranks(2) else { return };
    let resumed = command
        .args(["train", "--resume", "--out"])
        .arg(&run)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&resumed.stderr);
    assert_eq!(resumed.status.code(), Some(2), "{told}");
    assert!(
        told.contains("takes 3 batches a step, which 2 ranks can't divide evenly"),
        "{told}"
    );

    // One rank's trouble is told by all.
    let Some(command) = ranks(2) else { return };
    let output = train(command, &run, SPARSE).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("rank 0:") && told.contains("holds a run"), "{told}");
}
