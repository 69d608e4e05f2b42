//! Files: how many the process may have open, of which each connection is one, and who may read
//! those of secrets.

use std::path::Path;

use crate::config;

/// Files beside sockets: the log, the store, the runtime's own, and files that are read again.
const OTHERS: usize = 64;
/// Connections to upstreams for one request: `n` images of one request are made four at a time.
const UPSTREAM: usize = 4;

/// How many connections there can be. Raises the process's own limit of open files as far as it
/// may; where that is too low for the configuration, there are fewer connections, and the log says
/// so: a process without a file left can neither accept a client nor reach an upstream.
pub(crate) fn most_connections(server: &config::Server) -> usize {
    let for_calls = server.max_in_flight.saturating_mul(UPSTREAM).saturating_add(OTHERS);
    let needed = server.max_connections.saturating_add(for_calls);
    let may = rlimit::increase_nofile_limit(u64::try_from(needed).unwrap_or(u64::MAX));
    let Ok(may) = may.map(|may| usize::try_from(may).unwrap_or(usize::MAX)) else {
        // A system without such a limit.
        return server.max_connections;
    };
    let most = fitting(server.max_connections, for_calls, may);
    if most < server.max_connections {
        tracing::warn!(
            max_connections = server.max_connections,
            lowered_to = most,
            open_files = may,
            needed,
            "server.max_connections is lowered: the process may open too few files. Raise the limit \
             (`ulimit -n`, LimitNOFILE in a systemd unit, --ulimit nofile of a container), or lower \
             server.max_connections and server.max_in_flight"
        );
    }
    most
}

/// As many connections as are left of the files, and at least half of them.
fn fitting(connections: usize, for_calls: usize, may: usize) -> usize {
    connections.min(may.saturating_sub(for_calls).max(may / 2)).max(1)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_calls_fit_into_the_files_that_may_be_open() {
        assert_eq!(fitting(4096, 1088, 1 << 20), 4096);
        assert_eq!(fitting(4096, 1088, 4096), 3008);
        assert_eq!(fitting(4096, 1088, 1024), 512, "some calls need no connection of their own");
        assert_eq!(fitting(8, 1088, 1024), 8);
        assert_eq!(fitting(4096, 1088, 0), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_its_group_or_others_can_read_is_warned_about() {
        use std::os::unix::fs::PermissionsExt;
        let file = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        std::fs::write(&file, "x").unwrap();
        for (mode, is_open) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(mode_for_others(&file), is_open.then_some(mode), "{mode:o}");
        }
        std::fs::remove_file(file).unwrap();
    }
}
