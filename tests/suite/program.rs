//! The command-line program as tests call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::common::devices;

/// The program, with arguments to come.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obelisk"));
    // Mesa would ask a display which GPU it prefers.
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command
}

/// Runs something that starts processes. On Linux they are killed when they open a socket to a network; local ones remain, by
/// which the C library asks for users' names. The filter is the thread's, and its children inherit it.
pub fn offline<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let restricted = || {
        #[cfg(target_os = "linux")]
        refuse_network_sockets();
        start()
    };
    match std::thread::scope(|scope| scope.spawn(restricted).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network_sockets() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let family = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64);
    let not_local = SeccompRule::new(vec![family.expect("an argument")]).expect("a rule");
    let refused = [
        (libc::SYS_socket, vec![not_local]),
        (libc::SYS_io_uring_setup, Vec::new()), // which can open sockets, too
    ];
    let architecture = std::env::consts::ARCH
        .try_into()
        .expect("seccomp's architectures");
    let filter = SeccompFilter::new(
        refused.into(),
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        architecture,
    );
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    seccompiler::apply_filter(&filter).expect("a kernel with seccomp");
}

/// Every test whose program [`offline`] runs shows that it opens no such socket: those of training, killed and resumed, of
/// prediction and of every other command. This one shows that the filter bites.
#[cfg(target_os = "linux")]
#[test]
fn a_process_that_opens_a_socket_to_a_network_is_killed() {
    use std::os::unix::process::ExitStatusExt;
    let run = |script: &str| {
        offline(|| Command::new("bash").args(["-c", script]).output())
            .expect("bash starts")
            .status
    };
    assert!(run("echo no network").success());
    assert_eq!(run("exec 3<>/dev/tcp/127.0.0.1/9").signal(), Some(libc::SIGSYS));
    assert_eq!(run("exec 3<>/dev/udp/127.0.0.1/9").signal(), Some(libc::SIGSYS));
}

/// What the program left when called with these arguments.
pub fn obelisk(arguments: &[&str]) -> Output {
    offline(|| command().args(arguments).output()).expect("the program starts")
}

/// [`obelisk`] in a folder.
pub fn obelisk_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.current_dir(folder).args(arguments);
    offline(|| command.output()).expect("the program starts")
}

/// Asserts that all went well; gives what stdout had.
pub fn done(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    out
}

/// Asserts the exit code, and that stderr says `part`.
pub fn refused(output: &Output, code: i32, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(part), "`{part}` is not in: {text}");
}

/// Whether there is an adapter; see [`devices`].
pub fn adapter() -> bool {
    !devices().is_empty()
}

/// The sample dataset.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data")
}

/// Writes a dataset of the first of the sample cases, for tests of what is around a training.
pub fn few(folder: &Path, cases: usize) {
    let data = data();
    let file = std::fs::read(data.join("dataset.json")).unwrap();
    let mut description: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let listed = description["training"].as_array_mut().unwrap();
    assert!(cases <= listed.len());
    listed.truncate(cases);
    let files = listed
        .iter_mut()
        .flat_map(|case| case.as_object_mut().unwrap().values_mut());
    for file in files {
        *file = data.join(file.as_str().unwrap()).to_str().unwrap().into();
    }
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("dataset.json"), description.to_string()).unwrap();
}

/// A network that is compiled and trained in no time.
pub const TINY: &str = "meshnet:elu:8x1,8x2,8x1";

/// Starts the program and kills it as soon as `ready`. Whether it was killed: it may have ended by itself just before.
pub fn killed_when(command: &mut Command, ready: impl Fn() -> bool) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = offline(|| command.spawn()).unwrap();
    while !ready() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(ready(), "it ended ({status}) before it could be killed");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    // A signal leaves no exit code; Windows gives 1 to what is killed.
    match child.wait().unwrap().code() {
        None => true,
        Some(1) if cfg!(windows) => true,
        Some(0) => false,
        Some(code) => panic!("it failed with {code} before it could be killed"),
    }
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}
