//! Device, memory, kernels: what the driver layer promises.

use spatialssl::driver::{Device, Kernel, count, driver_version, names, try_kernel};

use crate::common::cases::cases;
use crate::common::emulator::{alone, emulator, left_out};

#[test]
fn the_emulated_device_is_found() {
    if left_out("the_emulated_device_is_found") {
        return;
    }
    assert_eq!(count().unwrap(), 1);
    assert_eq!(driver_version().unwrap(), (13, 0));
    let (name, memory) = names().unwrap().remove(0);
    assert!(name.contains("emulated"), "{name}");
    assert!(memory >= 1 << 30, "{memory}");
    let error = Device::open(1, false).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("found: 1 devices"), "{error}");
}

#[test]
fn bytes_come_back_and_zeros_are_zeros() {
    emulator();
    let device = Device::open(0, false).unwrap();
    let block = device.alloc(1000).unwrap();
    let data: Vec<u8> = (0..900).map(|i| (i % 251) as u8).collect();
    device.zero(&block, 0, 1000).unwrap();
    device.upload(&block, 50, &data).unwrap();
    let mut back = vec![1; 1000];
    device.download(&block, 0, &mut back).unwrap();
    assert_eq!(back[50..950], data);
    assert!(back[..50].iter().chain(&back[950..]).all(|&b| b == 0));
}

#[test]
fn a_copy_for_later_arrives_only_when_waited_for() {
    emulator();
    let device = Device::open(0, false).unwrap();
    let block = device.alloc(64).unwrap();
    let (mut from, mut to) = (device.pinned(64).unwrap(), device.pinned(64).unwrap());
    let event = device.event(false).unwrap();
    from.bytes_mut().fill(7);
    device.upload_later(&block, 0, &from, 64).unwrap();
    device.download_later(&mut to, 0..64, &block, 0).unwrap();
    device.record(&event).unwrap();
    event.wait().unwrap();
    assert_eq!(to.bytes(), [7; 64]);
}

#[test]
fn a_kernel_that_is_missing_is_named() {
    emulator();
    static ABSENT: Kernel = Kernel::new::<u64>("no_such_kernel", 32);
    let device = Device::open(0, false).unwrap();
    let error = device.load([&ABSENT]).unwrap_err();
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
}

#[test]
fn more_memory_than_there_is_is_refused_in_words() {
    emulator();
    let device = Device::open(0, false).unwrap();
    let error = device.alloc(1 << 50).map(|_| ()).unwrap_err().to_string();
    for part in ["cuMemAlloc", "wanted", "free", "views.batch"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Every kernel is looked up in the module that has it, and in no other: tools report each lookup that fails.
#[test]
fn no_lookup_of_a_kernel_fails() {
    if left_out("no_lookup_of_a_kernel_fails") {
        return;
    }
    let _alone = alone();
    let device = Device::open(0, false).unwrap();
    let failed = || emulator().counter("lookups_failed");
    let before = failed();
    for case in cases() {
        device.load(case.op.cuda().kernels()).unwrap();
    }
    assert_eq!(failed(), before);
    static ABSENT: Kernel = Kernel::new::<u64>("no_such_kernel_either", 32);
    device.load([&ABSENT]).unwrap_err();
    assert_eq!(failed(), before, "what no module has is not looked up");
}

#[test]
fn a_device_that_copies_right_runs_kernels() {
    emulator();
    try_kernel(0).unwrap();
    assert_eq!(try_kernel(1).unwrap_err().exit_code(), 5);
}

/// The emulated driver lists every kernel that was compiled: each is known to an operation, with its argument and its
/// threads.
#[test]
fn every_compiled_kernel_belongs_to_an_operation() {
    if left_out("every_compiled_kernel_belongs_to_an_operation") {
        return;
    }
    let mut known: Vec<&Kernel> = Vec::new();
    for case in cases() {
        known.extend(case.op.cuda().kernels());
    }
    let mut compiled = 0;
    for found in emulator().kernels() {
        if ["/roofline.cu", "/view.cu"].iter().any(|file| found.file.ends_with(file)) {
            continue;
        }
        let Some(kernel) = known.iter().find(|k| k.name == found.name) else {
            panic!("{} of {} is not launched by any operation", found.name, found.file)
        };
        assert_eq!(kernel.params_len, found.params_len, "{}", found.name);
        assert_eq!(kernel.threads, found.threads, "{}", found.name);
        compiled += 1;
    }
    known.sort_by_key(|k| k.name);
    known.dedup_by_key(|k| k.name);
    assert_eq!(compiled, known.len(), "kernels compiled and known");
}

/// Static shared memory by ptxas, in docs/kernels/table.md, and what is asked for at launch, which begins at 1,024
/// bytes behind it: both fit on every GPU.
#[test]
fn shared_memory_of_every_kernel_fits() {
    let table = include_str!("../../docs/kernels/table.md");
    let mut seen = 0;
    for case in cases() {
        for kernel in case.op.cuda().kernels() {
            let row = table.lines().find(|l| l.starts_with(&format!("| `{}` |", kernel.name)));
            let Some(row) = row else { panic!("{} has no row in the table", kernel.name) };
            let fixed: u32 = row.split('|').nth(3).unwrap().trim().parse().unwrap();
            let behind = if kernel.shared > 0 { fixed.next_multiple_of(1024) } else { fixed };
            let all = behind + kernel.shared;
            assert!(all <= 99 * 1024, "{}: {fixed} + {} bytes", kernel.name, kernel.shared);
            seen += usize::from(kernel.shared > 64 * 1024);
        }
    }
    assert!(seen > 0, "no kernel asks for much");
}
