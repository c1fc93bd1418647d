//! QEMU's monitor (QMP, docs/interop/qmp-spec.rst of QEMU).

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::deadline::STALL;

/// How often a wait for QEMU looks.
const LOOK: Duration = Duration::from_millis(50);

/// The lab's end of the line to a monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    listener: TcpListener,
    line: Option<BufReader<TcpStream>>,
}

impl Monitor {
    /// Listens for QEMU on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port can be had.
    pub(crate) fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening for QEMU's monitor")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, line: None })
    }

    /// The TCP port that QEMU has to connect to.
    ///
    /// # Errors
    /// The system does not say.
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// A command of the monitor for people; returns what it prints. Most of these print only complaints.
    ///
    /// # Errors
    /// As [`Monitor::command`].
    pub(crate) fn human(&mut self, line: &str) -> Result<String> {
        let printed = self.command("human-monitor-command", &json!({"command-line": line}))?;
        Ok(printed.as_str().unwrap_or_default().trim().to_owned())
    }

    /// Puts what the screen shows into a PNG file.
    ///
    /// # Errors
    /// As [`Monitor::command`].
    pub(crate) fn screen(&mut self, file: &Path) -> Result<()> {
        self.command(
            "screendump",
            &json!({"filename": file.display().to_string(), "format": "png"}),
        )
        .map(drop)
    }

    /// A command and its answer.
    ///
    /// # Errors
    /// QEMU is not there, does not answer, or refuses.
    pub(crate) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        if self.line.is_none() {
            self.line = Some(self.accept()?);
            self.ask("qmp_capabilities", &json!({}))?;
        }
        self.ask(name, arguments)
    }

    fn accept(&self) -> Result<BufReader<TcpStream>> {
        let begin = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((line, _)) => {
                    line.set_nonblocking(false)?;
                    line.set_read_timeout(Some(STALL))?;
                    return Ok(BufReader::new(line));
                }
                // QEMU connects before it runs its machine.
                Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < STALL => sleep(LOOK),
                Err(error) => return Err(error).context("QEMU has not connected its monitor"),
            }
        }
    }

    fn ask(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let line = self.line.as_mut().context("QEMU has not connected its monitor")?;
        let mut request = json!({"execute": name, "arguments": arguments}).to_string();
        request.push('\n');
        line.get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("QEMU has closed its monitor before {name}"))?;
        loop {
            let mut text = String::new();
            if line
                .read_line(&mut text)
                .with_context(|| format!("waiting for QEMU's answer to {name}"))?
                == 0
            {
                bail!("QEMU has closed its monitor during {name}");
            }
            let answer: Value = serde_json::from_str(&text).with_context(|| format!("QEMU's monitor said {text:?}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {name}: {}", error["desc"].as_str().unwrap_or_default());
            }
            // What else comes is a greeting or an event.
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU made of one thread, with these answers to what comes after `qmp_capabilities`.
    fn qemu(answers: &'static [&'static str]) -> (Monitor, std::thread::JoinHandle<Vec<String>>) {
        let monitor = Monitor::listen().unwrap();
        let port = monitor.port().unwrap();
        let thread = std::thread::spawn(move || {
            let mut line = BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
            writeln!(line.get_mut(), r#"{{"QMP": {{"capabilities": []}}}}"#).unwrap();
            let mut asked = Vec::new();
            for answer in [&[r#"{"return": {}}"#], answers].concat() {
                let mut text = String::new();
                line.read_line(&mut text).unwrap();
                asked.push(text);
                writeln!(line.get_mut(), "{answer}").unwrap();
            }
            asked
        });
        (monitor, thread)
    }

    #[test]
    fn an_answer_is_told_from_events() {
        let (mut monitor, qemu) = qemu(&[
            "{\"event\": \"RESET\"}\n{\"return\": \"no such CPU\\n\"}",
            r#"{"error": {"class": "GenericError", "desc": "no screen"}}"#,
        ]);
        assert_eq!(monitor.human("mce -b 9").unwrap(), "no such CPU");
        let error = monitor.screen(Path::new("/x.png")).unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses screendump: no screen");
        let asked = qemu.join().unwrap();
        assert!(asked[0].contains("qmp_capabilities"));
        assert!(
            asked[1].contains("mce -b 9") && asked[2].contains("/x.png"),
            "{asked:?}"
        );
    }

    #[test]
    fn a_monitor_that_closes_is_told() {
        let (mut monitor, qemu) = qemu(&[]);
        let error = format!("{:#}", monitor.human("info version").unwrap_err());
        qemu.join().unwrap();
        assert!(error.contains("human-monitor-command"), "{error}");
    }
}
