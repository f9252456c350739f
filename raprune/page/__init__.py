"""The page of a run: its front, its trials and what they cost, in a browser, while the run goes on and after it.

feed.py     what the page knows of a run: its store, read part by part
answers.py  pure: what is known -> the content of each answer
access.py   pure: a request -> let in, sent on or refused
app.py      the web application: addresses, headers, events
serve.py    `raprune serve`: the application in a process of its own
beside.py   the application under Ray Serve, beside a search
"""
