//! Whether SIGHUP is ignored, as `nohup` has it.

/// SIGHUP's bit in the mask of ignored signals.
const HANGUP: u64 = 1;

/// Linux tells this in `/proc` (proc(5)); the system call for it would be unsafe Rust. To be asked before a handler is installed.
pub(crate) fn is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| mask_has_hangup(&status))
}

fn mask_has_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANGUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_seen_in_the_mask() {
        assert!(mask_has_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        for other in ["SigIgn:\t0000000000001000\n", "SigCgt:\t0000000000000001\n", "SigIgn:\tx\n", ""] {
            assert!(!mask_has_hangup(other), "{other}");
        }
    }
}
