-- SPDX-License-Identifier: GPL-3.0-or-later
-- Written by lepton.cloud.load_balancer: what HAProxy's own configuration has no word for.

-- A request to a backend without a server that is up waits until there is one, for so many seconds at most. While it waits, HAProxy
-- counts it among the backend's sessions, by which whoever scales the service sees that somebody calls. Only so many wait: where all
-- servers of a busy service have failed, those that wait must not fill up the load balancer for the others.
local most_waiting = 500

core.register_action("lepton_wait_for_server", { "http-req" }, function(txn, seconds)
    local backend = txn.f:be_name()
    local deadline = core.now().sec + tonumber(seconds)
    if txn.f:be_conn(backend) > most_waiting then
        return
    end
    while txn.f:nbsrv(backend) == 0 and core.now().sec < deadline do
        core.msleep(100)
    end
end, 1)
