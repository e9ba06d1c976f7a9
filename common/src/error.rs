//! Owns the texts of the Kubernetes client's errors, and the status of a failed watch.
//! Never decides what follows from an error.

use std::{error::Error, iter};

use kube::{core::Status, runtime::watcher};

/// Returns the innermost cause of an error. The outer errors mostly repeat the URL.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// Returns an error and its causes in one text. A cause that the text contains already is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .map(ToString::to_string)
        .reduce(|text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
        .unwrap_or_default()
}

/// Returns an error and its causes, the outermost first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error| (*error).source())
}

/// Returns the status with which the API server rejected a list or watch; `None` if it did not answer.
pub fn watch_status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            if let kube::Error::Api(status) = error {
                Some(status)
            } else {
                None
            }
        }
        watcher::Error::NoResourceVersion => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn layers() -> Layer {
        Layer(
            "request failed: no route",
            Some(Box::new(Layer("no route", Some(Box::new(Layer("os error 113", None)))))),
        )
    }

    #[test]
    fn the_root_cause_is_the_innermost_error() {
        assert_eq!(root_cause(&layers()), "os error 113");
        assert_eq!(root_cause(&Layer("alone", None)), "alone");
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        assert_eq!(chain(&layers()), "request failed: no route: os error 113");
    }

    #[test]
    fn a_failed_list_or_watch_has_the_status_of_the_api_server() {
        let status = || Box::new(serde_json::from_str::<Status>(r#"{"code": 403}"#).unwrap());
        for error in [
            watcher::Error::WatchError(status()),
            watcher::Error::InitialListFailed(kube::Error::Api(status())),
            watcher::Error::WatchStartFailed(kube::Error::Api(status())),
            watcher::Error::WatchFailed(kube::Error::Api(status())),
        ] {
            assert_eq!(watch_status(&error).map(|status| status.code), Some(403), "{error}");
        }
        assert!(watch_status(&watcher::Error::NoResourceVersion).is_none());
        assert!(watch_status(&watcher::Error::WatchFailed(kube::Error::LinesCodecMaxLineLengthExceeded)).is_none());
    }
}
