//! Files that hold secrets.

use std::path::Path;

/// Warns about a file of secrets that its group or everybody may read. Only a warning: some
/// platforms mount secrets so, into a directory that nobody else sees.
pub(crate) fn warn_if_readable_by_others(file: &Path, what: &str) {
    if let Some(mode) = mode_for_others(file) {
        let mode = format!("{mode:03o}");
        tracing::warn!(
            file = %file.display(),
            mode,
            "{what} can be read by other users of this machine; chmod 600 keeps it to its owner"
        );
    }
}

/// The permissions of a file that others may read.
#[cfg(unix)]
fn mode_for_others(file: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o777;
    (mode & 0o044 != 0).then_some(mode)
}

#[cfg(not(unix))]
fn mode_for_others(_: &Path) -> Option<u32> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_its_group_or_others_can_read_is_warned_about() {
        let file = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        std::fs::write(&file, "x").unwrap();
        for (mode, is_open) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(mode_for_others(&file), is_open.then_some(mode), "{mode:o}");
        }
        std::fs::remove_file(file).unwrap();
    }
}
