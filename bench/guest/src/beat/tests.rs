use super::*;

fn identity() -> Identity {
    Identity {
        name: "g1".into(),
        gpa: 0x5000,
        boot_id: 7,
        started_ns: 9,
        buffer_bytes: 4096,
    }
}

#[test]
fn a_created_page_is_recognised() {
    let words = blank_page();
    assert!(BeatPage::recognise(&words).is_none());
    let _ = BeatPage::create(&words, &identity());
    let page = BeatPage::recognise(&words).expect("created above");
    assert_eq!(page.identity(), identity());
    assert_eq!(page.faults(), 0);
    assert_eq!(page.first_fault(), None);
    assert!(!page.running());
}

#[test]
fn a_changed_header_is_not_recognised() {
    for word in [word::MAGIC, word::NAME, word::GPA, word::BOOT_ID, word::HEADER_SUM] {
        let words = blank_page();
        let _ = BeatPage::create(&words, &identity());
        words[word].fetch_xor(1, Ordering::Relaxed);
        assert!(BeatPage::recognise(&words).is_none(), "word {word}");
    }
}

#[test]
fn a_long_name_is_cut() {
    let words = blank_page();
    let page = BeatPage::create(
        &words,
        &Identity {
            name: "n".repeat(40),
            ..identity()
        },
    );
    assert_eq!(page.identity().name, "n".repeat(NAME_BYTES));
}

#[test]
fn the_first_fault_is_kept_and_all_are_counted() {
    let words = blank_page();
    let page = BeatPage::create(&words, &identity());
    let first = FirstFault {
        fault: Fault::Registers,
        place: 3,
        expected: 1,
        found: 2,
    };
    page.record(first);
    page.record(FirstFault {
        fault: Fault::NetCorrupt,
        place: 0,
        expected: 0,
        found: 0,
    });
    page.record(FirstFault {
        fault: Fault::Registers,
        place: 4,
        expected: 0,
        found: 0,
    });
    assert_eq!(page.count(Fault::Registers), 2);
    assert_eq!(page.count(Fault::NetCorrupt), 1);
    assert_eq!(page.faults(), 3);
    assert_eq!(page.first_fault(), Some(first));
}

#[test]
fn a_sample_half_written_is_not_read() {
    let words = blank_page();
    let page = BeatPage::create(&words, &identity());
    let sample = Sample {
        beat: 1,
        tsc: 2,
        monotonic_ns: 3,
        realtime_ns: 4,
    };
    page.publish(sample);
    assert_eq!(page.sample(), Some(sample));
    words[word::SAMPLE_SEQUENCE].fetch_add(1, Ordering::Relaxed);
    assert_eq!(page.sample(), None);
}

#[test]
fn a_sample_read_while_another_thread_writes_is_whole() {
    let words = blank_page();
    let page = BeatPage::create(&words, &identity());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1..200 {
                page.publish(Sample {
                    beat: i,
                    tsc: i,
                    monotonic_ns: i,
                    realtime_ns: i,
                });
            }
        });
        for _ in 0..200 {
            if let Some(s) = page.sample() {
                assert!(s.beat == s.tsc && s.tsc == s.monotonic_ns && s.monotonic_ns == s.realtime_ns);
            }
        }
    });
}

#[test]
fn tallies_add_and_rise() {
    let words = blank_page();
    let page = BeatPage::create(&words, &identity());
    page.add(Tally::Passes, 2);
    page.raise(Tally::LongestStepNs, 5);
    page.raise(Tally::LongestStepNs, 3);
    assert_eq!((page.tally(Tally::Passes), page.tally(Tally::LongestStepNs)), (2, 5));
}
