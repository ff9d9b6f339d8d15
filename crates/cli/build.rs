//! Puts the guest agent into the program, if one is named by `MICROVM_AGENT_BINARY`.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=MICROVM_AGENT_BINARY");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("microvm-agent");
    match env::var_os("MICROVM_AGENT_BINARY") {
        Some(agent) => {
            let agent = PathBuf::from(agent);
            println!("cargo::rerun-if-changed={}", agent.display());
            fs::copy(&agent, &out)
                .unwrap_or_else(|error| panic!("copying the agent {}: {error}", agent.display()));
        }
        // A build without one looks for it beside the program when it runs.
        None => fs::write(&out, []).expect("OUT_DIR can be written"),
    }
}
