//! Run with `cargo run -p quota-across-processes`.
//!
//! Several processes at full demand share one quota of requests a minute and a day. See the library
//! beside this file.

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("this program cannot find itself: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    match quota_across_processes::app(&program, &args, &mut std::io::stdout().lock()) {
        Ok(_) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
