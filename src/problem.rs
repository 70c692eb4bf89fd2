//! Problems in the log: a line that begins with the object, and fields for programs.

use corax_core::problem::Problem;
use tracing::{error, info, warn};

/// Says that something is wrong, and is done without.
pub(crate) fn warn(Problem { object, what, remedy }: &Problem) {
    warn!(object, remedy, "{object}: {what}");
}

/// Says that something could not be done.
pub(crate) fn error(Problem { object, what, remedy }: &Problem) {
    error!(object, remedy, "{object}: {what}");
}

/// Says that something is wrong no longer.
pub(crate) fn over(Problem { object, what, .. }: &Problem) {
    info!(object, "{object}: no longer: {what}");
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn writer(&self) -> impl Fn() -> Self + use<> {
            let log = self.clone();
            move || log.clone()
        }

        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
        }
    }

    fn tell_all() {
        let problem = Problem::new("link raven0", "is not Corax's", "remove it");
        warn(&problem);
        error(&problem);
        over(&problem);
    }

    #[test]
    fn a_line_for_people_begins_with_the_object_and_one_for_programs_has_it_as_a_field() {
        let (text, json) = (Log::default(), Log::default());
        let plain = || tracing_subscriber::fmt().with_target(false).with_ansi(false).without_time();
        tracing::subscriber::with_default(plain().with_writer(text.writer()).finish(), tell_all);
        tracing::subscriber::with_default(plain().json().with_writer(json.writer()).finish(), tell_all);
        let told = "link raven0: is not Corax's object=\"link raven0\" remedy=\"remove it\"";
        assert_eq!(
            text.lines(),
            [
                format!(" WARN {told}"),
                format!("ERROR {told}"),
                " INFO link raven0: no longer: is not Corax's object=\"link raven0\"".to_owned(),
            ]
        );
        let fields = json.lines().into_iter().map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            ["object", "remedy"].map(|field| line["fields"][field].as_str().map(str::to_owned))
        });
        let [object, remedy] = ["link raven0", "remove it"].map(|text| Some(text.to_owned()));
        let both = || [object.clone(), remedy.clone()];
        assert_eq!(fields.collect::<Vec<_>>(), [both(), both(), [object.clone(), None]]);
    }
}
