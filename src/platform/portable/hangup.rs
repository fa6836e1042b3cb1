//! Whether SIGHUP is ignored, as `nohup` has it.

use std::process::{Command, Stdio};

/// A child shell sends itself a SIGHUP and lives only if it ignores the signal. A program inherits what is ignored through exec(3), and a
/// shell cannot change what was ignored when it started (POSIX, 2.11 and 2.14 `trap`). To be asked before a handler is installed.
pub(crate) fn is_ignored() -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -s HUP $$; exit 0"]).stdin(Stdio::null()).stdout(Stdio::null());
    shell.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
