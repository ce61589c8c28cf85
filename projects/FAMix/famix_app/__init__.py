"""Page in the browser that compares networks on pictures: famix-app.

`page.py` has the components, `handlers.py` their events, and the other modules the functions behind them, which need no
browser.
"""
