// The same as plain.py, in another language: Node.js with the package zeromq.
"use strict"

const zmq = require("zeromq")

async function main() {
  const [count, ask, push, pull] = [Number(process.argv[2]), ...process.argv.slice(3)]
  const asking = new zmq.Request({ receiveTimeout: 60000 })
  const pushing = new zmq.Push({ linger: 60000 })
  const pulling = new zmq.Pull({ receiveTimeout: 60000 })
  asking.connect(ask)
  pushing.connect(push)
  pulling.connect(pull)
  for (let number = 0; number < count; number += 1) {
    await pushing.send(JSON.stringify({ number, text: "grüße", by: ["node"] }))
  }
  const answers = []
  for (let number = 0; number < count; number += 1) {
    await asking.send(JSON.stringify({ number }))
    const [frame] = await asking.receive()
    answers.push(JSON.parse(frame.toString()).number)
  }
  const got = []
  while (got.length < count) {
    const [frame] = await pulling.receive()
    got.push(JSON.parse(frame.toString()))
  }
  console.log(JSON.stringify({ answers, got }))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
