//! The kept versions of one secret, in the order of their numbers.
//!
//! Invariant: each number is there once. There are few, most often one, and 100,000 secrets: a list without room to spare
//! takes a tenth of a map's memory.

use keyhole_domain::Version;

use crate::SecretVersion;

/// Versions by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions(Vec<(Version, SecretVersion)>);

impl Versions {
    /// A version.
    pub fn get(&self, number: Version) -> Option<&SecretVersion> {
        self.find(number).ok().and_then(|at| self.0.get(at)).map(|(_, version)| version)
    }

    /// Whether it is kept.
    pub fn contains(&self, number: Version) -> bool {
        self.find(number).is_ok()
    }

    /// All, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Version, &SecretVersion)> {
        self.0.iter().map(|(number, version)| (*number, version))
    }

    /// Their numbers, in order.
    pub fn numbers(&self) -> impl DoubleEndedIterator<Item = Version> {
        self.iter().map(|(number, _)| number)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps a version; one of the same number is replaced.
    pub(crate) fn insert(&mut self, number: Version, version: SecretVersion) {
        match self.find(number) {
            Ok(at) => self.0[at].1 = version,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (number, version));
            }
        }
    }

    /// Drops a version.
    pub(crate) fn remove(&mut self, number: Version) {
        if let Ok(at) = self.find(number) {
            self.0.remove(at);
        }
    }

    fn find(&self, number: Version) -> Result<usize, usize> {
        self.0.binary_search_by_key(&number, |(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use keyhole_domain::Timestamp;

    use super::*;
    use crate::SealedValue;

    fn version(index: u64) -> SecretVersion {
        let value = SealedValue { epoch: 1, salt: [0; 32], ciphertext: Vec::new() };
        SecretVersion { created_at: Timestamp(0), index, value: Arc::new(value) }
    }

    #[test]
    fn it_is_a_map_whatever_the_order() {
        let (mut versions, mut map) = (Versions::default(), BTreeMap::new());
        let mut seed = 7_u32;
        for step in 0..500 {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let number = Version::new(u64::from(seed >> 16) % 12 + 1).unwrap();
            if seed & 0x8000 == 0 {
                versions.insert(number, version(step));
                map.insert(number, version(step));
            } else {
                versions.remove(number);
                map.remove(&number);
            }
            assert!(versions.iter().eq(map.iter().map(|(number, version)| (*number, version))));
            assert_eq!((versions.len(), versions.is_empty()), (map.len(), map.is_empty()));
            assert_eq!(versions.get(number), map.get(&number));
            assert_eq!(versions.contains(number), map.contains_key(&number));
        }
        assert!(versions.numbers().eq(map.keys().copied()));
    }
}
