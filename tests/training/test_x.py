import pytest, bayestune as bt, torch, shutil
from bayestune.progress import silent
from bayestune.training import fit
from contextlib import contextmanager
def stop_after(n):
    @contextmanager
    def p(label,total):
        done=0
        def adv(count=1,note=""):
            nonlocal done
            done+=count
            if label=="training" and done>n: raise KeyboardInterrupt
        yield adv
    return p
def test_resume(make,clear,tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make(),clear,out=tmp_path/"a",progress=stop_after(150))
    print(list((tmp_path/"a").rglob("*")))
    fit(make(),clear,out=tmp_path/"a",resume=True,progress=silent)
def test_overwrite(make,clear,tmp_path):
    fit(make(),clear,out=tmp_path/"a",progress=silent)
    fit(make(),clear,out=tmp_path/"a",progress=silent,overwrite=True)
    assert len((tmp_path/"a/metrics.jsonl").read_text().splitlines())==4
def test_resume_finished(make,clear,tmp_path):
    fit(make(),clear,out=tmp_path/"a",progress=silent)
    fit(make(),clear,out=tmp_path/"a",progress=silent,resume=True)
def test_clobber(make,tmp_path):
    d=tmp_path/"docs"; d.mkdir(); (d/"thesis.txt").write_text("x")
    try: make().save(d)
    except bt.errors.StoreError as e: print(e)
    assert (d/"thesis.txt").exists()
def test_full(make,tmp_path):
    import resource
    m=make(); m.save(tmp_path/"a")
    soft,hard=resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE,(2000,hard))
    try:
        with pytest.raises(Exception) as e: m.save(tmp_path/"a")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE,(soft,hard))
    print(repr(e.value)); print(list(tmp_path.iterdir()))
    bt.load(tmp_path/"a")
    assert "Bayestune" in str(type(e.value).__mro__)
def test_empty(make,choice):
    m=make()
    print(m.predict([]), m.features([]).shape)
    m=make(labels=choice)
    print(m.predict([]))
def test_twice(make,clear):
    m=make(); fit(m,clear,progress=silent,refresh="block"); print(m.head.family)
    fit(m,clear,progress=silent); print(m.head.family)
