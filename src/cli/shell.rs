//! What shells and `man` know of the program, from the same descriptions as its helps.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::print::{self, outln};
use super::{Arguments, examples};

/// `obelisk completions`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "For bash, from the next shell on":
        "obelisk completions bash > ~/.local/share/bash-completion/completions/obelisk",
    "For fish, from the next shell on":
        "obelisk completions fish > ~/.config/fish/completions/obelisk.fish"
))]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "obelisk", &mut script);
        print::out(format_args!("{}", String::from_utf8(script)?));
        Ok(())
    }
}

/// `obelisk man`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "For this user: `man obelisk-train`": "obelisk man ~/.local/share/man/man1",
    "For a package": "obelisk man target/man/man1"
))]
pub struct Man {
    /// Folder to write obelisk.1, obelisk-train.1 … into, made when absent
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Man {
    pub fn run(&self) -> anyhow::Result<()> {
        let what = || format!("{}", self.folder.display());
        obelisk::file::make_folder(&self.folder).with_context(what)?;
        clap_mangen::generate_to(Arguments::command(), &self.folder).with_context(what)?;
        outln!("{}", self.folder.display());
        Ok(())
    }
}
