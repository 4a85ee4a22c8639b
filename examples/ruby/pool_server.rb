# frozen_string_literal: true

# A web server that runs the code it is sent, each request in a clean VM of a pool: ruby pool_server.rb [IMAGE [PROGRAM [PORT]]]
#
#     curl --data 'puts 6 * 7' http://127.0.0.1:8000/
require "socket"
require "supermachine"

ref, program, port = ARGV.values_at(0, 1, 2)
ref ||= "ruby:3.3-slim"
program ||= "ruby"

def serve(client, pool, program)
  length = 0
  while (line = client.gets) && line != "\r\n"
    length = line.split(":", 2).last.to_i if line.downcase.start_with?("content-length:")
  end
  code = client.read(length)
  result = pool.acquire { |vm| vm.run([program, "-"], stdin: code, timeout: 10) } # microseconds, while one is ready
  answer(client, result.success? ? "200 OK" : "422 Unprocessable Content", result.stdout + result.stderr)
rescue Supermachine::ExhaustedError
  answer(client, "503 Service Unavailable", "all VMs are busy\n")
ensure
  client.close
end

def answer(client, status, body)
  client.write("HTTP/1.1 #{status}\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n", body)
end

begin
  Supermachine::Image.from_oci(ref, boot_only: true, warmup: [[program, "--version"]]) do |image|
    image.pool(min: 2, max: 16, acquire_timeout: 5) do |pool|
      server = TCPServer.new("127.0.0.1", (port || 8000).to_i)
      puts "http://127.0.0.1:#{server.local_address.ip_port}/"
      $stdout.flush
      loop { Thread.new(server.accept) { |client| serve(client, pool, program) } }
    end
  end
rescue Interrupt
  nil
end
