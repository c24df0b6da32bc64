"""The browser and the site of tests/browser, for attacks on them."""

from tests.browser.conftest import browser, chromium_path, live_server, open_page
from tests.browser.test_pages import site

__all__ = ["browser", "chromium_path", "live_server", "open_page", "site"]
