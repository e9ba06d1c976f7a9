//! Owns a minimal DNS server for a test cluster: it resolves one name, and answers NXDOMAIN for all others.
//! Never forwards a query, and never uses TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

const HEADER: usize = 12;
const TYPE_A: [u8; 2] = 1_u16.to_be_bytes();
const CLASS_IN: [u8; 2] = 1_u16.to_be_bytes();
/// Flags: response, recursion desired and available, no error.
const NO_ERROR: [u8; 2] = [0x81, 0x80];
/// Flags: the same with NXDOMAIN.
const NXDOMAIN: [u8; 2] = [0x81, 0x83];

/// Serves at `listen` until the future is dropped, and resolves `name` to `address`.
///
/// # Errors
/// If binding or reading the socket fails.
pub async fn serve(listen: SocketAddr, name: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind(listen).await?;
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let Some(response) = respond(&buffer[..length], name, address) {
            socket.send_to(&response, from).await?;
        }
    }
}

/// Returns the response, or `None` if the bytes are no valid query.
fn respond(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let (queried, end) = queried_name(query)?;
    let query_type = query.get(end..end + 2)?;
    let question = query.get(HEADER..end + 4)?;
    let known = queried.eq_ignore_ascii_case(name);
    let found = known && query_type == TYPE_A;

    let mut response = query.get(..2)?.to_vec();
    response.extend(if known { NO_ERROR } else { NXDOMAIN });
    response.extend([0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    response.extend(question);
    if found {
        // A pointer to the name in the question; a TTL of five seconds; four bytes of data.
        response.extend([0xc0, 12]);
        response.extend(TYPE_A);
        response.extend(CLASS_IN);
        response.extend([0, 0, 0, 5, 0, 4]);
        response.extend(address.octets());
    }
    Some(response)
}

/// Returns the queried name and the offset of its end.
fn queried_name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut offset = HEADER;
    loop {
        let length = usize::from(*query.get(offset)?);
        offset += 1;
        if length == 0 {
            return Some((labels.join("."), offset));
        }
        labels.push(String::from_utf8_lossy(query.get(offset..offset + length)?).into_owned());
        offset += length;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

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
    fn the_known_name_resolves_to_its_address() {
        let response = respond(&query("Amperity.lab", 1), "amperity.lab", ADDRESS).unwrap();
        assert_eq!(response[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(response.ends_with(&[0, 4, 10, 0, 0, 1]));
    }

    #[test]
    fn the_known_name_has_no_records_of_other_types() {
        let response = respond(&query("amperity.lab", 28), "amperity.lab", ADDRESS).unwrap();
        assert_eq!(response[2..8], [0x81, 0x80, 0, 1, 0, 0]);
    }

    #[test]
    fn other_names_do_not_exist() {
        let response = respond(&query("amperity.lab.svc.cluster.local", 1), "amperity.lab", ADDRESS).unwrap();
        assert_eq!(response[2..8], [0x81, 0x83, 0, 1, 0, 0]);
    }

    #[test]
    fn invalid_queries_get_no_response() {
        assert_eq!(respond(&[1, 2, 3], "amperity.lab", ADDRESS), None);
        assert_eq!(respond(&query("amperity.lab", 1)[..20], "amperity.lab", ADDRESS), None);
    }
}
