//! docs/SEMANTICS.md, "Reading".

use keyhole_tests::{Answer, Ask, EACCES, EINVAL, ENXIO, Machine};
use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

/// Every byte value, and no two blocks alike.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at + at / 251) as u8).collect()
}

#[test]
fn s24_reads_are_exact() {
    let machine = Machine::start();
    let sizes = [1, 255, 4095, 4096, 4097, 131_072, 511_999, 512_000];
    let name = |size: usize| format!("v{size}");
    for size in sizes {
        machine.secret(&name(size), bytes(size));
    }
    let names = sizes.map(name);
    machine.service("web", &names.each_ref().map(String::as_str));
    let task = machine.task("web");
    for size in sizes {
        let want = bytes(size);
        let path = machine.at(&name(size));
        assert!(task.slurp(&path).unwrap() == want, "{size}: whole");
        let fd = task.open(&path, libc::O_RDONLY).unwrap();
        let mut read = Vec::new();
        for piece in [1, 4096, 7, 100_000, 600_000, 600_000].into_iter().cycle() {
            let got = task.read(fd, piece).unwrap();
            if got.is_empty() {
                break;
            }
            read.extend(got);
        }
        assert!(read == want, "{size}: in pieces");
        assert_eq!(task.read(fd, 10), Ok(vec![]), "{size}: at the end");
        let (middle, end) = (size / 2, size as u64);
        let piece = task.pread(fd, 5000, middle as u64).unwrap();
        assert!(piece == want[middle..size.min(middle + 5000)], "{size}: pread");
        assert_eq!(task.pread(fd, 10, end), Ok(vec![]));
        assert_eq!(task.pread(fd, 10, end + 1_000_000), Ok(vec![]));
        assert_eq!(task.pread(fd, 10, end - 1), Ok(want[size - 1..].to_vec()));
    }
}

#[test]
fn s25_seeking() {
    let machine = Machine::start();
    let task = machine.web("0123456789");
    let fd = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    let seek = |offset, whence| task.number(Ask::Seek(fd.0, offset, whence));
    assert_eq!(seek(4, libc::SEEK_SET), Ok(4));
    assert_eq!(task.read(fd, 2), Ok(b"45".to_vec()));
    assert_eq!(seek(-1, libc::SEEK_CUR), Ok(5));
    assert_eq!(task.read(fd, 1), Ok(b"5".to_vec()));
    assert_eq!(seek(-2, libc::SEEK_END), Ok(8));
    assert_eq!(task.read(fd, 10), Ok(b"89".to_vec()));
    assert_eq!(seek(100, libc::SEEK_SET), Ok(100));
    assert_eq!(task.read(fd, 10), Ok(vec![]));
    assert_eq!(seek(-1, libc::SEEK_SET), Err(EINVAL));
    assert_eq!(seek(3, libc::SEEK_DATA), Ok(3));
    assert_eq!(seek(3, libc::SEEK_HOLE), Ok(10));
    assert_eq!(seek(10, libc::SEEK_DATA), Err(ENXIO));
}

#[test]
fn s26_other_ways_to_read() {
    let machine = Machine::start();
    let want = bytes(10_000);
    let task = machine.web(&want);
    let open = || task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    let vectors = task.bytes(Ask::Readv(open().0, vec![1, 0, 5000, 6000])).unwrap();
    assert!(vectors == want);
    assert!(task.bytes(Ask::Sendfile(open().0, 20_000)).unwrap() == want);
    let fd = open();
    let mut spliced = Vec::new();
    while spliced.len() < want.len() {
        let some = task.bytes(Ask::Splice(fd.0, 20_000)).unwrap();
        assert!(!some.is_empty(), "no end before the end");
        spliced.extend(some);
    }
    assert!(spliced == want);
    assert_eq!(task.number(Ask::Poll(fd.0)), Ok(i64::from(libc::POLLIN)));
    let (first, second) = (open(), open());
    assert_eq!(task.call(Ask::Flock(first.0, libc::LOCK_EX)), Ok(()));
    assert_eq!(task.call(Ask::Flock(second.0, libc::LOCK_SH)), Err(keyhole_tests::Errno(11)));
    assert_eq!(task.call(Ask::Flock(first.0, libc::LOCK_UN)), Ok(()));
    assert_eq!(task.call(Ask::Flock(second.0, libc::LOCK_SH)), Ok(()));
}

#[test]
fn s27_maps() {
    let machine = Machine::start();
    let want = bytes(5000);
    let task = machine.web(&want);
    let fd = task.open(machine.at("pw"), libc::O_RDONLY).unwrap();
    for sharing in [MAP_PRIVATE, MAP_SHARED] {
        let map = task.mmap(fd, 3 * 4096, PROT_READ, sharing).unwrap();
        assert_eq!(task.peek(map, 0, 5000), Answer::Bytes(want.clone()));
        assert_eq!(task.peek(map, 5000, 3192), Answer::Bytes(vec![0; 3192]), "filled with zeros");
        assert_eq!(task.peek(map, 8192, 1), Answer::Signal(libc::SIGBUS));
    }
    assert_eq!(task.mmap(fd, 4096, PROT_READ | PROT_WRITE, MAP_SHARED), Err(EACCES));
    let own = task.mmap(fd, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE).unwrap();
    let other = task.mmap(fd, 4096, PROT_READ, MAP_SHARED).unwrap();
    task.call(Ask::Poke(own, 0, 0xee)).unwrap();
    assert_eq!(task.peek(own, 0, 1), Answer::Bytes(vec![0xee]));
    assert_eq!(task.peek(other, 0, 1), Answer::Bytes(want[..1].to_vec()));
    assert!(task.slurp(machine.at("pw")).unwrap() == want, "only the process's own copy changed");
}
