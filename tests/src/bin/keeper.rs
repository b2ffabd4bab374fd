//! A process that has bytes on its heap and does nothing: what a memory scan must find.
//!
//! It reads its standard input to the end, says `ready`, and waits to be killed. Invariant: the bytes stay where they are.

use std::io::Read;

fn main() {
    let mut kept = Vec::new();
    std::io::stdin().read_to_end(&mut kept).expect("a pipe");
    println!("ready");
    loop {
        std::thread::park();
        std::hint::black_box(&kept);
    }
}
