"""Nothing is lost: real processes, an endpoint that fails in every way, and a hand that kills.

endpoint   fails by a plan, and logs what it stored
senders    send as Segment does, and know what was acknowledged
fleet      the processes, and the hand that kills them
run        all of it together for a while
judge      what must hold afterwards
"""
