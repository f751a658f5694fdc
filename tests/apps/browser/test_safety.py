"""Files from strangers, and who may listen."""

import shutil
import socket

import h5py
import pytest
from browsing import explorer, opened

EVIL = "<img src=x onerror=window.struck=1>"


@pytest.fixture(scope="module")
def strange(browser, shipped, tmp_path_factory):
    """An explorer over one good file, one cut short, an empty one, and one whose names are markup."""
    root = tmp_path_factory.mktemp("strange")
    good = shipped / "shipped" / "resnet_mcdo_18.h5"
    shutil.copy(good, root / "good.h5")
    (root / "cut.h5").write_bytes(good.read_bytes()[:3000])
    (root / "empty.h5").touch()
    shutil.copy(good, root / f"{EVIL}.h5")
    with h5py.File(root / f"{EVIL}.h5", "r+") as file:
        for group in ("variance", "fourier"):
            names = file[group]["layer"]
            names[...] = [f"{EVIL}{number}**b**" for number in range(len(names))]
    with explorer(root, module=True) as running:
        yield running
        assert "Traceback" not in running.log, running.log


def test_broken_files_are_listed_with_their_sentence(strange, page, pictures):
    opened(page, f"{strange.url}/?run=good.h5")
    said = page.get_by_test_id("stMain").inner_text()
    assert "cut.h5 is damaged" in said and "empty.h5 is empty." in said
    page.screenshot(path=pictures / "runs_broken.png")


@pytest.mark.parametrize("name", ["", "variance", "fourier", "robustness", "hessian", "compare"])
def test_names_in_files_are_text(strange, page, pictures, name):
    query = "run=%3Cimg+src%3Dx+onerror%3Dwindow.struck%3D1%3E.h5" + "&run=good.h5" * (name == "compare")
    opened(page, f"{strange.url}/{name}?{query}")
    assert page.evaluate("() => window.struck") is None
    assert not page.locator("img[src=x]").count()
    assert EVIL in page.get_by_test_id("stApp").inner_text().replace("\n", " ")
    if name == "variance":  # where the layers are named
        assert any(tick.startswith(EVIL[:10]) for tick in page.locator("[class$=tick] text").all_text_contents())
    page.screenshot(path=pictures / f"hostile_{name or 'runs'}.png")


@pytest.mark.parametrize("started", ["strange", "site"])
def test_only_this_machine_is_answered(request, started):
    port = int(request.getfixturevalue(started).url.rpartition(":")[2])
    others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others or {"127.0.0.2"}:
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):
            pass


def handshake(port, host, origin):
    """The status that a browser gets which asks for the page's content, from a page of this origin."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{origin}:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: c29tZSBzaXh0ZWVuIGJ5dA==\r\n\r\n".encode()
        )
        return int(connection.recv(64).split()[1])


@pytest.mark.parametrize("started", ["strange", "site"])
def test_pages_of_other_sites_get_nothing(request, started):
    port = int(request.getfixturevalue(started).url.rpartition(":")[2])
    assert handshake(port, "127.0.0.1", "127.0.0.1") == handshake(port, "localhost", "localhost") == 101
    assert handshake(port, "127.0.0.1", "evil.example") == 403
    assert handshake(port, "evil.example", "evil.example") == 403  # its name was made to point here


def test_nothing_can_be_uploaded_without_a_token(strange, page):
    opened(page, strange.url)
    answer = page.request.put(f"{strange.url}/_stcore/upload_file/a/b", multipart={"file": "x"})
    assert answer.status == 403
