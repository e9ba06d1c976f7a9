//! Owns the smallest name server that a cluster needs: it knows one name, and says of all others that they don't exist.
//! Never asks another server, and never answers but by UDP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

const HEADER: usize = 12;
const ADDRESS: [u8; 2] = 1_u16.to_be_bytes();
const INTERNET: [u8; 2] = 1_u16.to_be_bytes();
/// Response, recursion desired and available, no error.
const FOUND: [u8; 2] = [0x81, 0x80];
/// The same, but there is no such name.
const NO_SUCH_NAME: [u8; 2] = [0x81, 0x83];

/// Answers queries at `listen` until its task is dropped: `name` is at `at`.
///
/// # Errors
/// Where the address cannot be bound or read from.
pub async fn serve(listen: SocketAddr, name: &str, at: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind(listen).await?;
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) = answer(&buffer[..length], name, at) {
            socket.send_to(&answer, from).await?;
        }
    }
}

/// Nothing where it is not a query.
fn answer(query: &[u8], name: &str, at: Ipv4Addr) -> Option<Vec<u8>> {
    let (asked, after) = question(query)?;
    let kind = query.get(after..after + 2)?;
    let question = query.get(HEADER..after + 4)?;
    let known = asked.eq_ignore_ascii_case(name);
    let found = known && kind == ADDRESS;

    let mut answer = query.get(..2)?.to_vec();
    answer.extend(if known { FOUND } else { NO_SUCH_NAME });
    answer.extend([0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(question);
    if found {
        // The name is the one at the question's place. It is good for five seconds, and has four bytes.
        answer.extend([0xc0, 12]);
        answer.extend(ADDRESS);
        answer.extend(INTERNET);
        answer.extend([0, 0, 0, 5, 0, 4]);
        answer.extend(at.octets());
    }
    Some(answer)
}

/// The name that is asked for, and where it ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut here = HEADER;
    loop {
        let length = usize::from(*query.get(here)?);
        here += 1;
        if length == 0 {
            return Some((labels.join("."), here));
        }
        labels.push(String::from_utf8_lossy(query.get(here..here + length)?).into_owned());
        here += length;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn the_name_it_knows_has_its_address() {
        let answer = answer(&query("Amperity.lab", 1), "amperity.lab", HOME).unwrap();
        assert_eq!(answer[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(answer.ends_with(&[0, 4, 10, 0, 0, 1]));
    }

    #[test]
    fn it_has_no_other_kind_of_address() {
        let answer = answer(&query("amperity.lab", 28), "amperity.lab", HOME).unwrap();
        assert_eq!(answer[2..8], [0x81, 0x80, 0, 1, 0, 0]);
    }

    #[test]
    fn other_names_do_not_exist() {
        let answer = answer(&query("amperity.lab.svc.cluster.local", 1), "amperity.lab", HOME).unwrap();
        assert_eq!(answer[2..8], [0x81, 0x83, 0, 1, 0, 0]);
    }

    #[test]
    fn what_is_no_query_has_no_answer() {
        assert_eq!(answer(&[1, 2, 3], "amperity.lab", HOME), None);
        assert_eq!(answer(&query("amperity.lab", 1)[..20], "amperity.lab", HOME), None);
    }
}
