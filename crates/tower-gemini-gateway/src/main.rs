//! Run with
//!
//! ```not_rust
//! cargo run -p tower-gemini-gateway -- --simulate                # offline: a simulated Gemini behind it
//! cargo install --path crates/tower-gemini-gateway                # the program gemini-gateway
//! gemini-gateway --config gateway.toml
//! ```
//!
//! A drop-in base URL for Gemini SDKs that never pays twice. See `--help` and `--print-config`.

use std::io;
use std::process::ExitCode;

use tokio::sync::mpsc;
use tower_gemini_gateway::{Signal, app, ends_in_order};

/// Starts the program again with a setting that glibc's allocator reads at its start only.
///
/// Responses are a few blocks of megabytes each. Without it the allocator raises the size from which
/// a block is given back to the system with each that it frees: after 64 responses of 20 MB through
/// 32 connections 352 MiB of 460 stayed resident, and 27 with it (mimalloc: 386 of 552). The size is
/// the allocator's own before it raises it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_large_blocks_back() {
    use std::os::unix::process::CommandExt as _;
    const SETTING: &str = "MALLOC_MMAP_THRESHOLD_";
    const FROM: &str = "131072";
    if std::env::var_os(SETTING).is_some() {
        return;
    }
    let (Ok(program), mut args) = (std::env::current_exe(), std::env::args_os()) else { return };
    let mut again = std::process::Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // The same process with the same files. Where that is not possible, it goes on as it is.
    let _ = again.args(args).env(SETTING, FROM).exec();
}

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_large_blocks_back();
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            use io::Write;
            let _ = writeln!(io::stderr(), "gemini-gateway: the runtime cannot start: {error}");
            return ExitCode::from(2);
        }
    };
    ExitCode::from(runtime.block_on(async {
        let (sender, signals) = mpsc::channel(4);
        if ends_in_order(&args) {
            tokio::spawn(listen(sender));
        }
        app(&args, &mut io::stdout(), &mut io::stderr(), signals).await
    }))
}

/// Passes the operating system's signals on.
#[cfg(unix)]
async fn listen(sender: mpsc::Sender<Signal>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        // Without handlers the operating system ends the process by itself.
        return std::future::pending().await;
    };
    loop {
        let signal = tokio::select! {
            Some(()) = terminate.recv() => Signal::Stop,
            Some(()) = interrupt.recv() => Signal::Stop,
            Some(()) = hangup.recv() => Signal::Reload,
        };
        if sender.send(signal).await.is_err() {
            return;
        }
    }
}

#[cfg(not(unix))]
async fn listen(sender: mpsc::Sender<Signal>) {
    while tokio::signal::ctrl_c().await.is_ok() && sender.send(Signal::Stop).await.is_ok() {}
}
