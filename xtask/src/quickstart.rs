//! From a fresh machine to code running in a microVM.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{agent, host, microvm, packages, run};

/// Does what is missing and nothing else, so that the second time takes seconds.
pub(crate) fn quickstart(consent: Consent) -> Result<()> {
    let begun = Instant::now();
    prepare(consent)?;
    step("running python in a microVM", || {
        let begun = Instant::now();
        let arguments = ["run", "--", "python3", "-c", "print(6*7)"];
        let answer = run::output(&mut microvm::call(Duration::from_secs(5 * 60), &arguments))?;
        if answer.trim() != "42" {
            bail!("6*7 came back as {answer:?}");
        }
        println!(
            "  print(6*7) → {}   (booted, run and gone in {:.1} s)",
            answer.trim(),
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    })?;
    let program = microvm::path();
    let program = program.display();
    println!("\nDone in {:.0} s. To try next:\n", begun.elapsed().as_secs_f64());
    println!("  {program} run -it -- bash");
    println!("  {program} create --name dev && {program} exec dev -- uname -a");
    println!("  {program} doctor");
    Ok(())
}

/// Everything up to a machine that can run VMs; also what the tests start from.
pub(crate) fn prepare(consent: Consent) -> Result<std::path::PathBuf> {
    step("looking at the host", host::check)?;
    step("installing packages", || packages::install(Purpose::Program, consent))?;
    let agent = step("building the guest agent", agent::build)?;
    step("building microvm", || microvm::build(&agent))?;
    step("providing a kernel", microvm::provide_kernel)?;
    step("providing the image debian-python", microvm::provide_image)?;
    Ok(agent)
}
