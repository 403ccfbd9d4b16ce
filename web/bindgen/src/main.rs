//! Turns the engine's WebAssembly into a module for browsers: `bindgen ENGINE.wasm FOLDER`.

use anyhow::Context;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let [engine, folder] = [(); 2].map(|()| arguments.next().context("usage: bindgen ENGINE.wasm FOLDER"));
    Bindgen::new()
        .input_path(engine?)
        .out_name("obelisk")
        .typescript(true)
        // The module finds its WebAssembly beside it.
        .omit_default_module_path(false)
        .web(true)?
        .generate(folder?)
}
