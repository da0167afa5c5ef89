//! The speed of `PUBLISH` in Redis: the floor of events between replicas.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::tool::arith::{ratio, real};

/// Measured duration.
const SPAN: Duration = Duration::from_secs(1);
/// Pipelined commands.
const AT_ONCE: u64 = 64;
/// About the length of a message event.
const EVENT_BYTES: usize = 300;

/// Returns the events published per second to a channel without subscribers.
///
/// # Errors
/// If Redis does not answer.
pub async fn rate(port: u16) -> Result<f64, String> {
    measure(port).await.map_err(|error| format!("Redis: {error}"))
}

async fn measure(port: u16) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let event = "x".repeat(EVENT_BYTES);
    let command = format!("*3\r\n$7\r\nPUBLISH\r\n$5\r\nfloor\r\n${EVENT_BYTES}\r\n{event}\r\n");
    let commands: String = (0..AT_ONCE).map(|_| command.as_str()).collect();

    let (began, mut count, mut buffer) = (Instant::now(), 0, vec![0; 4096]);
    while began.elapsed() < SPAN {
        stream.write_all(commands.as_bytes()).await?;
        let mut answers = 0;
        while answers < AT_ONCE {
            let read = stream.read(&mut buffer).await?;
            if read == 0 || buffer[0] == b'-' {
                return Err(std::io::Error::other("PUBLISH was refused"));
            }
            answers += u64::try_from(lines_in(&buffer[..read])).unwrap_or(0);
        }
        count += answers;
    }
    Ok(ratio(real(count), began.elapsed().as_secs_f64()))
}

/// Counts line ends; each answer is one line.
fn lines_in(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_came_in_two_parts_counts_once() {
        assert_eq!(lines_in(b":0\r\n:0") + lines_in(b"\r\n"), 2);
        assert_eq!(lines_in(b""), 0);
    }
}
