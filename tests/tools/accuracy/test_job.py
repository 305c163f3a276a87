from tools.accuracy.job import Record, append_record, read_records


def test_a_record_survives_its_line(record, tmp_path):
    first, second = record(row="once-4"), record(seed=3)
    for one in (first, second):
        append_record(tmp_path / "new" / "results.jsonl", one)
    assert read_records(tmp_path / "new" / "results.jsonl") == [first, second]
    assert Record.from_line(first.to_line()) == first
    assert read_records(tmp_path / "absent.jsonl") == []


def test_jobs_that_differ_have_different_keys(job):
    keys = {job().key, job(seed=1).key, job(lr=2e-3).key, job(pretrained=None).key, job(train_images=5).key}
    assert len(keys) == 5
    assert job().key == job().key
