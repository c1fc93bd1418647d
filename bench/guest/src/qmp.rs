//! Drives QEMU by hand over QMP: one JSON object per line each way.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to a QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    ///
    /// # Errors
    /// No QEMU listens there, or it does not speak QMP.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let writer = UnixStream::connect(path).with_context(|| {
            format!(
                "no QEMU at {}: start it with -qmp unix:PATH,server,nowait",
                path.display()
            )
        })?;
        writer.set_read_timeout(Some(timeout))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Qmp {
            reader,
            writer,
            events: Vec::new(),
        };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute(&json!({"execute": "qmp_capabilities"}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its answer.
    ///
    /// # Errors
    /// QEMU refused it, or did not answer in time.
    pub fn execute(&mut self, command: &Value) -> Result<Value> {
        // At once: QEMU obeys at the closing brace, and after `quit` there is nobody to take a newline.
        self.writer.write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            } else {
                return Ok(answer.get_mut("return").map(Value::take).unwrap_or_default());
            }
        }
    }

    /// Waits for an event, also one that came earlier on this connection.
    ///
    /// # Errors
    /// It did not come in time.
    pub fn wait(&mut self, event: &str) -> Result<Value> {
        loop {
            let wanted = |e: &Value| e.get("event").and_then(Value::as_str) == Some(event);
            if let Some(i) = self.events.iter().position(wanted) {
                return Ok(self.events.remove(i));
            }
            let line = self.line().with_context(|| format!("waiting for {event}"))?;
            self.events.push(line);
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self
            .reader
            .read_line(&mut line)
            .context("QEMU did not answer in time")?
            == 0
        {
            bail!("QEMU closed the connection");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }
}

/// Turns what a user types into a command: a whole JSON object, or a name with optional JSON arguments.
///
/// # Errors
/// The arguments are not JSON.
pub fn parse_command(text: &str) -> Result<Value> {
    let text = text.trim();
    if text.starts_with('{') {
        return serde_json::from_str(text).with_context(|| format!("not JSON: {text}"));
    }
    match text.split_once(char::is_whitespace) {
        None => Ok(json!({"execute": text})),
        Some((name, arguments)) => {
            let arguments: Value = serde_json::from_str(arguments).with_context(|| format!("not JSON: {arguments}"))?;
            Ok(json!({"execute": name, "arguments": arguments}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn commands_may_be_short() {
        let value = |text| parse_command(text).expect("well formed").to_string();
        assert_eq!(value("quit"), r#"{"execute":"quit"}"#);
        assert_eq!(
            value(r#"migrate {"uri":"x"}"#),
            r#"{"arguments":{"uri":"x"},"execute":"migrate"}"#
        );
        assert_eq!(value(r#"{"execute":"stop"}"#), r#"{"execute":"stop"}"#);
        assert!(parse_command("migrate {").is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "uses sockets")]
    fn events_between_answers_are_kept_and_errors_are_errors() {
        let path = std::env::temp_dir().join(format!("lab-guest-qmp-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a fresh path");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client below");
            let mut lines = BufReader::new(stream.try_clone().expect("dup")).lines();
            writeln!(stream, r#"{{"QMP":{{}}}}"#).expect("write");
            for answer in [
                r#"{"return":{}}"#,
                "{\"event\":\"RESUME\"}\n{\"return\":{\"status\":\"running\"}}",
                r#"{"error":{"desc":"no"}}"#,
            ] {
                lines.next();
                writeln!(stream, "{answer}").expect("write");
            }
        });
        let mut qmp = Qmp::connect(&path, Duration::from_secs(180)).expect("greeted");
        let status = qmp.execute(&json!({"execute": "query-status"})).expect("answered");
        assert_eq!(status["status"], "running");
        assert_eq!(qmp.wait("RESUME").expect("came earlier")["event"], "RESUME");
        assert!(qmp.execute(&json!({"execute": "bad"})).is_err());
        server.join().expect("server");
        assert!(qmp.wait("STOP").is_err());
        std::fs::remove_file(&path).expect("made above");
    }
}
